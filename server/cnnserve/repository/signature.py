"""What a signature says: which files of a folder were signed, and their digests. It needs no cryptography.

`model.sig` is the bundle that OpenSSF's model-signing writes: a DSSE envelope around an in-toto statement, which names
every file of the folder with its SHA-256. The file itself is not signed. A version folder has its own signature, and so
have the files beside the version folders.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from cnnserve import json_text
from cnnserve.errors import ModelLoadFailed

_T = TypeVar("_T")

SIGNATURE_FILE = "model.sig"
# Room for 50,000 files.
MAX_BYTES = 8 * 2**20
SIGN_AGAIN = "sign the folder again: cnnserve sign PATH --key KEY"

PAYLOAD_TYPE = "application/vnd.in-toto+json"
_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://model_signing/signature/v1.0"


@dataclass(frozen=True)
class Signed:
    """What a signature covers: the `name` of the folder, and its `files` by path, with SHA-256 in hexadecimal digits.

    `signer` names the trusted key, or the certificate and the authority; "" before the signature is verified.
    """

    name: str
    files: Mapping[str, str]
    signer: str = ""


class Trust(Protocol):
    """The keys whose signatures count."""

    def verify(self, bundle: bytes) -> Signed:
        """Returns what a trusted key has signed. Raises `ModelLoadFailed` if the signature is not valid or trusted."""

    def reload(self) -> None:
        """Reads the keys again: those that are read count for all later loads."""


@dataclass(frozen=True)
class Envelope:
    """The parts of a bundle: the signed `payload`, its `signature`, and either a key's `hint` or certificates (DER).

    `hint` is the SHA-256 of the public key's PEM, or "". The first certificate is that of the key.
    """

    payload: bytes
    signature: bytes
    hint: str = ""
    certificates: tuple[bytes, ...] = ()

    @property
    def signed_bytes(self) -> bytes:
        """What the signature was computed from: DSSE's pre-authentication encoding of the payload."""
        return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(self.payload), self.payload)


class _Malformed(Exception):
    """A bundle is not what model-signing writes. The text says what is wrong."""


def envelope(bundle: bytes) -> Envelope:
    """Returns the parts of a bundle. Raises `ModelLoadFailed` if it is damaged or of another kind."""
    if len(bundle) > MAX_BYTES:
        raise ModelLoadFailed(f"{SIGNATURE_FILE} has {len(bundle)} bytes, at most {MAX_BYTES} are read; {SIGN_AGAIN}")
    try:
        raw = json_text.loads_strictly(bundle)
        if (kind := _get(raw, "mediaType", str)) != _MEDIA_TYPE:
            raise _Malformed(f"mediaType is {kind[:80]!r}, expected {_MEDIA_TYPE}")
        dsse = _get(raw, "dsseEnvelope", dict)
        if (kind := _get(dsse, "payloadType", str)) != PAYLOAD_TYPE:
            raise _Malformed(f"payloadType is {kind[:80]!r}, expected {PAYLOAD_TYPE}")
        if len(signatures := _get(dsse, "signatures", list)) != 1:
            raise _Malformed(f"it has {len(signatures)} signatures, expected 1")
        return Envelope(
            _bytes(dsse, "payload"), _bytes(signatures[0], "sig"), *_material(_get(raw, "verificationMaterial", dict))
        )
    except (_Malformed, ValueError) as error:
        raise ModelLoadFailed(
            f"{SIGNATURE_FILE} is damaged, or not a signature of model-signing: {error}; {SIGN_AGAIN}"
        ) from error


def _material(raw: dict[str, Any]) -> tuple[str, tuple[bytes, ...]]:
    if "x509CertificateChain" in raw:
        chain = _get(_get(raw, "x509CertificateChain", dict), "certificates", list)
        if not chain:
            raise _Malformed("it has no certificate")
        return "", tuple(_bytes(certificate, "rawBytes") for certificate in chain)
    if "publicKey" in raw:
        return str(_get(raw, "publicKey", dict).get("hint") or ""), ()
    # A keyless signature needs Sigstore's services, which a server without the network cannot ask.
    raise _Malformed("it was made neither with a key nor with a certificate of your own")


def statement(payload: bytes) -> Signed:
    """Returns what a payload states. Raises `ModelLoadFailed` if it is not what model-signing states of files."""
    try:
        raw = json_text.loads_strictly(payload)
        for name, expected in (("_type", _STATEMENT), ("predicateType", _PREDICATE)):
            if (found := _get(raw, name, str)) != expected:
                raise _Malformed(f"{name} is {found[:80]!r}, expected {expected}")
        subjects = _get(raw, "subject", list)
        folder = _get(subjects[0] if subjects else None, "name", str)
        predicate = _get(raw, "predicate", dict)
        serialization = _get(predicate, "serialization", dict)
        if (method := _get(serialization, "method", str)) != "files":
            raise _Malformed(f"it signs {method[:80]!r}, expected whole files")
        resources = _get(predicate, "resources", list)
        files = {_get(resource, "name", str): _sha256(resource) for resource in resources}
    except (_Malformed, ValueError) as error:
        raise ModelLoadFailed(f"the statement in {SIGNATURE_FILE} cannot be used: {error}; {SIGN_AGAIN}") from error
    if len(files) != len(resources):
        raise ModelLoadFailed(f"the statement in {SIGNATURE_FILE} names a file twice; {SIGN_AGAIN}")
    return Signed(folder, files)


def check_digest(signed: Signed, name: str, sha256: str) -> None:
    """Raises `ModelLoadFailed` unless a file was signed with this SHA-256."""
    expected = signed.files.get(name)
    if expected is None:
        raise ModelLoadFailed(
            f"{SIGNATURE_FILE} does not cover {name}: it was added after signing, or the signature belongs to another "
            f"folder; remove it, or {SIGN_AGAIN}"
        )
    if sha256 != expected:
        raise ModelLoadFailed(
            f"file {name} is not the one that was signed: SHA-256 {sha256[:12]}…, {SIGNATURE_FILE} says "
            f"{expected[:12]}…; put the signed file back, or, if the change is yours, {SIGN_AGAIN}"
        )


def _sha256(resource: Any) -> str:
    if (algorithm := _get(resource, "algorithm", str)) != "sha256":
        raise _Malformed(f"a digest is {algorithm[:80]!r}, expected sha256")
    return _get(resource, "digest", str)


def _bytes(raw: Any, name: str) -> bytes:
    return base64.b64decode(_get(raw, name, str), validate=True)


def _get(raw: Any, name: str, kind: type[_T]) -> _T:
    value = raw.get(name) if isinstance(raw, dict) else None
    if not isinstance(value, kind):
        raise _Malformed(f"{name} is {'missing' if value is None else type(value).__name__}, expected {kind.__name__}")
    return value
