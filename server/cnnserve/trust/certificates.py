"""Certificates of signing keys: from the signer's certificate to a trusted authority."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import (
    Criticality,
    ExtensionPolicy,
    Policy,
    PolicyBuilder,
    Store,
    VerificationError,
)

CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)


class Untrusted(Exception):
    """A certificate is not to be trusted. The text says why, and what to do."""


def signing_key(
    chain: Sequence[bytes], authorities: Mapping[str, Sequence[x509.Certificate]]
) -> tuple[ec.EllipticCurvePublicKey, str]:
    """Returns the public key of the first certificate of a chain (DER), and names it and its authority.

    `authorities`: the trusted certificates by the name of their file. Raises `Untrusted`.
    """
    trusted = {certificate: file for file, certificates in authorities.items() for certificate in certificates}
    if not trusted:
        raise Untrusted(
            "it was made with a certificate, but no certificate is among the trusted keys; add that of its authority"
        )
    try:
        return _verified([x509.load_der_x509_certificate(certificate) for certificate in chain], trusted)
    except Untrusted:
        raise
    except Exception as error:
        # For a damaged certificate, cryptography raises errors of many classes without a common one, and some late,
        # when a field is read.
        raise Untrusted(f"its certificate cannot be read: {error}; sign the folder again") from error


def _verified(
    chain: Sequence[x509.Certificate], trusted: Mapping[x509.Certificate, str]
) -> tuple[ec.EllipticCurvePublicKey, str]:
    leaf, *others = chain
    check_leaf(leaf)
    try:
        verified = _policy(list(trusted)).build_client_verifier().verify(leaf, others)
    except VerificationError as error:
        raise Untrusted(_explained(leaf, others, list(trusted), error)) from error
    key = leaf.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key, f"{name(leaf)} ({trusted[verified.chain[-1]]})"


def check_leaf(certificate: x509.Certificate) -> None:
    """Raises `Untrusted` unless models can be signed with the key of a certificate now."""
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, CURVES):
        raise Untrusted(
            f"the key of the certificate {name(certificate)} is not of the curve P-256, P-384 or P-521; use such a key"
        )
    if problem := expired(certificate):
        raise Untrusted(f"{problem}; sign the folder again with a certificate that is valid")
    if not _may_sign(certificate):
        raise Untrusted(
            f"the certificate {name(certificate)} is not meant for signatures; use one with the key usage "
            "digitalSignature or the extended key usage codeSigning"
        )


def expired(certificate: x509.Certificate) -> str:
    """Returns when a certificate expired or becomes valid; "" if it is valid now."""
    now = datetime.now(UTC)
    if now > certificate.not_valid_after_utc:
        return f"the certificate {name(certificate)} expired on {certificate.not_valid_after_utc:%Y-%m-%d}"
    if now < certificate.not_valid_before_utc:
        return f"the certificate {name(certificate)} is not valid before {certificate.not_valid_before_utc:%Y-%m-%d}"
    return ""


def name(certificate: x509.Certificate) -> str:
    """Returns the subject of a certificate, such as CN=release."""
    return certificate.subject.rfc4514_string() or "without a name"


def _policy(authorities: list[x509.Certificate]) -> PolicyBuilder:
    authority = (
        ExtensionPolicy.permit_all()
        .require_present(x509.BasicConstraints, Criticality.AGNOSTIC, _check_authority)
        .may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, _check_key_usage)
    )
    # The default policies are those of web servers, whose certificates name hosts.
    return (
        PolicyBuilder()
        .store(Store(authorities))
        .extension_policies(ca_policy=authority, ee_policy=ExtensionPolicy.permit_all())
    )


def _check_authority(_: Policy, certificate: x509.Certificate, constraints: x509.BasicConstraints) -> None:
    if not constraints.ca:
        raise ValueError(f"{name(certificate)} is not the certificate of an authority")


def _check_key_usage(_: Policy, certificate: x509.Certificate, usage: x509.KeyUsage | None) -> None:
    if usage is not None and not usage.key_cert_sign:
        raise ValueError(f"{name(certificate)} may not sign certificates")


def _may_sign(certificate: x509.Certificate) -> bool:
    extensions = {type(extension.value): extension.value for extension in certificate.extensions}
    usage, extended = extensions.get(x509.KeyUsage), extensions.get(x509.ExtendedKeyUsage)
    return (isinstance(usage, x509.KeyUsage) and usage.digital_signature) or (
        isinstance(extended, x509.ExtendedKeyUsage) and ExtendedKeyUsageOID.CODE_SIGNING in extended
    )


def _explained(
    leaf: x509.Certificate,
    others: Sequence[x509.Certificate],
    authorities: Sequence[x509.Certificate],
    error: VerificationError,
) -> str:
    issuers = {certificate.issuer for certificate in (leaf, *others)}
    for certificate in (*others, *(one for one in authorities if one.subject in issuers)):
        if problem := expired(certificate):
            return f"{problem}; sign the folder again with a certificate of an authority that is valid"
    return (
        f"the certificate {name(leaf)} leads to no trusted certificate ({error}); add the certificate of its authority "
        "to the trusted keys, or sign the folder again"
    )
