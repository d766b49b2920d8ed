"""The trusted keys: a folder of public keys and certificates, and the check of a signature."""

import dataclasses
import hashlib
import stat
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cnnserve.access.lists import AccessError
from cnnserve.config.settings import ConfigError
from cnnserve.errors import ModelLoadFailed, reason
from cnnserve.repository import signature
from cnnserve.repository.signature import SIGNATURE_FILE, Envelope, Signed
from cnnserve.trust import certificates
from cnnserve.trust.certificates import CURVES, Untrusted

_MAX_BYTES = 2**20
_PUBLIC_KEY, _CERTIFICATE = b"-----BEGIN PUBLIC KEY-----", b"-----BEGIN CERTIFICATE-----"
_PUBLIC = "openssl pkey -in KEY -pubout"


class TrustedKeys:
    """The public keys and certificates of authorities at `path`, see `read`. It is a `signature.Trust`.

    Raises `ConfigError`, as `read`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._keys, self._authorities = _read(path)

    def __str__(self) -> str:
        return ", ".join(sorted({*self._keys, *self._authorities}))

    @property
    def warnings(self) -> list[str]:
        """What is wrong with trusted certificates without making the others useless."""
        found = [(file, certificates.expired(one)) for file, many in self._authorities.items() for one in many]
        return [f"{file}: {problem}; no signature counts because of it" for file, problem in found if problem]

    def reload(self) -> None:
        """Reads the files again. Raises `AccessError` if one cannot be used; then the keys stay as they are."""
        try:
            self._keys, self._authorities = _read(self._path)
        except ConfigError as error:
            raise AccessError(str(error)) from error

    def verify(self, bundle: bytes) -> Signed:
        """Returns what a trusted key has signed. Raises `ModelLoadFailed` if the signature is not valid or trusted."""
        parts = signature.envelope(bundle)
        signer = self._by_certificate(parts) if parts.certificates else self._by_key(parts)
        return dataclasses.replace(signature.statement(parts.payload), signer=signer)

    def _by_key(self, parts: Envelope) -> str:
        for file, key in self._keys.items():
            if _is_valid(parts, key):
                return file
        # The hint is not signed: it only tells which of two mistakes is more likely.
        for file, key in self._keys.items():
            if parts.hint == _hint(key):
                raise ModelLoadFailed(
                    f"{SIGNATURE_FILE} was changed after signing: its signature is not valid for {file}, whose "
                    f"key made it; put the signature back, or {signature.SIGN_AGAIN}"
                )
        raise ModelLoadFailed(
            f"{SIGNATURE_FILE} was made with another key than the trusted ones ({self}); sign the folder with a "
            "trusted key, or add the public key of this one"
        )

    def _by_certificate(self, parts: Envelope) -> str:
        try:
            key, signer = certificates.signing_key(parts.certificates, self._authorities)
        except Untrusted as error:
            raise ModelLoadFailed(f"{SIGNATURE_FILE} has no valid signature of a trusted key: {error}") from error
        if not _is_valid(parts, key):
            raise ModelLoadFailed(
                f"{SIGNATURE_FILE} was changed after signing: its signature does not belong to the certificate of "
                f"{signer}; {signature.SIGN_AGAIN}"
            )
        return signer


def read(path: Path) -> TrustedKeys:
    """Returns the keys in a folder, or in one file. Names that begin with a dot are ignored. Blocks.

    Raises `ConfigError`, which names the file, if there is anything else than public keys and certificates.
    """
    return TrustedKeys(path)


def _read(path: Path) -> tuple[dict[str, ec.EllipticCurvePublicKey], dict[str, list[x509.Certificate]]]:
    """Returns the keys and the authorities, by the names of their files."""
    try:
        files = [path] if path.is_file() else sorted(file for file in path.iterdir() if not file.name.startswith("."))
    except OSError as error:
        raise ConfigError(f"the trusted keys in {str(path)!r} cannot be read: {reason(error)}") from error
    keys: dict[str, ec.EllipticCurvePublicKey] = {}
    authorities: dict[str, list[x509.Certificate]] = {}
    for file in files:
        data = _content(file)
        # Only the first key, or only the certificates, would count.
        if _PUBLIC_KEY in data and data.count(b"-----BEGIN ") > 1:
            raise ConfigError(
                f"{file} holds a public key beside other keys or certificates; give each public key its own file"
            )
        if _CERTIFICATE in data:
            authorities[file.name] = _certificates(file, data)
        else:
            keys[file.name] = _key(file, data)
    if not files:
        raise ConfigError(
            f"the folder of trusted keys {str(path)!r} is empty; put public keys ({_PUBLIC}) or certificates there"
        )
    return keys, authorities


def _hint(key: ec.EllipticCurvePublicKey) -> str:
    """Returns how model-signing names a public key in its bundles."""
    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(pem).hexdigest()


def _is_valid(parts: Envelope, key: ec.EllipticCurvePublicKey) -> bool:
    # model-signing takes the digest whose strength is that of the curve.
    digest = {256: hashes.SHA256(), 384: hashes.SHA384(), 521: hashes.SHA512()}[key.curve.key_size]
    try:
        key.verify(parts.signature, parts.signed_bytes, ec.ECDSA(digest))
    except InvalidSignature:
        return False
    return True


def _content(file: Path) -> bytes:
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise ConfigError(f"{file} is not a file, expected a public key or certificates; remove it")
        with file.open("rb") as opened:
            data = opened.read(_MAX_BYTES)
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {reason(error)}") from error
    if b"PRIVATE KEY-----" in data:
        raise ConfigError(
            f"{file} is a private key, which only the signer may have; put its public key there: {_PUBLIC}"
        )
    return data


def _key(file: Path, data: bytes) -> ec.EllipticCurvePublicKey:
    try:
        key = serialization.load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"{file} is neither a public key nor a certificate in PEM; remove it, or make a public key: {_PUBLIC}"
        ) from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, CURVES):
        raise ConfigError(
            f"{file} is not a key of the curve P-256, P-384 or P-521; make one: "
            "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256"
        )
    return key


def _certificates(file: Path, data: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError as error:
        raise ConfigError(f"{file} has a damaged certificate: {error}; copy it again, or remove it") from error
