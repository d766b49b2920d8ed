"""Keys, certificates and signatures for tests. All of them are real."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from support import HANG_S

DAY = timedelta(days=1)


def new_key(file: Path, curve: ec.EllipticCurve | None = None) -> Path:
    """Writes a private key into `file` and its public key beside it, into NAME.pub. Returns `file`."""
    key = ec.generate_private_key(curve or ec.SECP256R1())
    file.write_bytes(_pem(key))
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    public_key(file).write_bytes(public)
    return file


def public_key(key: Path) -> Path:
    """Returns the file of the public key that belongs to the private one."""
    return key.with_suffix(".pub")


class Authority:
    """A certificate authority. `file` has its certificate, valid until `days` from now.

    `issuer`: the authority that issued the certificate; None: itself. `own`: key and certificate that it has already.
    """

    def __init__(
        self,
        folder: Path,
        name: str = "Model signing CA",
        days: float = 30,
        issuer: "Authority | None" = None,
        own: tuple[Path, Path] | None = None,
    ) -> None:
        self._folder = folder
        self._name = _name(name)
        if own is not None:
            self._key, self.file = _load(own[0]), own[1]
            self._name = x509.load_pem_x509_certificate(self.file.read_bytes()).subject
            return
        self._key = ec.generate_private_key(ec.SECP256R1())
        by = issuer or self
        certificate = (
            _builder(self._name, by._name, self._key.public_key(), days)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(by._key, hashes.SHA256())
        )
        self.file = folder / f"{name.replace(' ', '-')}.pem"
        self.file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str, days: float = 10, *, may_sign: bool = True) -> tuple[Path, Path]:
        """Returns the files of a new private key and of its certificate, valid until `days` from now."""
        key = new_key(self._folder / f"{name}.key")
        private = _load(key)
        usage = x509.KeyUsage(
            digital_signature=may_sign,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=not may_sign,
            key_cert_sign=False,
            crl_sign=False,
            encipher_only=False,
            decipher_only=False,
        )
        certificate = (
            _builder(_name(name), self._name, private.public_key(), days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .sign(self._key, hashes.SHA256())
        )
        file = self._folder / f"{name}.crt"
        file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return key, file


def model_signing(*arguments: str | Path) -> str:
    """Runs OpenSSF's own tool in a process. Returns its output, and raises `AssertionError` with it if it fails."""
    ended = subprocess.run(
        [sys.executable, "-m", "model_signing", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


def _builder(
    name: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: float
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 100 * DAY)
        .not_valid_after(now + days * DAY)
    )


def _load(file: Path) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(file.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
