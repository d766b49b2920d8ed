"""The server's certificate and key: read, tried, and read again when the files change."""

import logging
import re
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnnserve.access.lists import AccessError, contents
from cnnserve.errors import reason

_log = logging.getLogger(__name__)

WARN_S = 14 * 86400
_WARN_AGAIN_S = 86400
_MAX_BYTES = 2**20
_FIRST_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


@dataclass(frozen=True)
class TlsFiles:
    """PEM files: certificate chain and key of the server. With `client_ca`, clients need a certificate of these."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files."""
        return (self.certificate, self.key, *([self.client_ca] if self.client_ca else []))


@dataclass(frozen=True)
class Identity:
    """What the files held when they were read: bytes for gRPC, a context for HTTP, the end in seconds since 1970."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None
    context: ssl.SSLContext
    expires: float


class Tls:
    """The identity with which the server meets new connections. Raises `AccessError` if the files cannot be used."""

    def __init__(self, files: TlsFiles, clock: Callable[[], float] = time.time) -> None:
        self.files = files
        self._clock = clock
        self._warned = float("-inf")
        self.identity: Identity = _read(files)

    def read(self) -> None:
        """Reads the files. New connections get what they hold; open ones live on."""
        self.identity = _read(self.files)
        self._warned = float("-inf")

    def warn(self) -> None:
        """Warns once a day of a certificate that ends within 14 days."""
        now = self._clock()
        left_s = self.identity.expires - now
        if left_s < WARN_S and now - self._warned >= _WARN_AGAIN_S:
            self._warned = now
            state = f"expires in {max(0.0, left_s) / 86400:.1f} days" if left_s > 0 else "has expired"
            _log.warning("the certificate %s %s; write a new one into the file", self.files.certificate, state)

    def http_context(self) -> ssl.SSLContext:
        """Returns a context that meets each new connection with the identity of that moment."""
        return _Current(self)


class _Current(ssl.SSLContext):
    """asyncio asks its context for an object for each connection; this one asks the newest context."""

    _tls: Tls

    def __new__(cls, tls: Tls) -> "_Current":
        context = super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)
        context._tls = tls
        return context

    def wrap_bio(self, *arguments: Any, **settings: Any) -> ssl.SSLObject:
        """Returns the TLS state of a new connection."""
        return self._tls.identity.context.wrap_bio(*arguments, **settings)


def names_of(certificate: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Returns the names in a verified client certificate, as `ssl.SSLObject.getpeercert` gives it."""
    if not certificate:
        return ()
    subject = [pair for group in certificate.get("subject", ()) for pair in group]
    names = [f"CN:{value}" for key, value in subject if key == "commonName"]
    kinds = {"DNS": "DNS", "URI": "URI", "email": "email", "IP Address": "IP"}
    names += [f"{kinds[kind]}:{value}" for kind, value in certificate.get("subjectAltName", ()) if kind in kinds]
    return tuple(names)


def _read(files: TlsFiles) -> Identity:
    certificate, key = _bytes(files.certificate), _bytes(files.key)
    client_ca = _bytes(files.client_ca) if files.client_ca else None
    first = _FIRST_PEM.search(certificate)
    if first is None:
        raise AccessError(f"{files.certificate} has no complete PEM certificate; write the server's certificate chain")
    if b"PRIVATE KEY-----" not in key:
        raise AccessError(f"{files.key} has no PEM private key; write the key of {files.certificate}")
    expires = _expiry(files, _context(files), first[0].decode("ascii", "replace"))
    context = _context(files)
    if files.client_ca:
        try:
            context.load_verify_locations(files.client_ca)
        except ssl.SSLError as error:
            raise AccessError(
                f"{files.client_ca} cannot be used: {_why(error)}; write the PEM certificates of the authorities that "
                "issue client certificates"
            ) from error
        context.verify_mode = ssl.CERT_REQUIRED
    return Identity(certificate, key, client_ca, context, expires)


def _context(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        # Without a password, OpenSSL would ask for one on the terminal.
        context.load_cert_chain(files.certificate, files.key, password="")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise AccessError(
                f"{files.key} is not the key of {files.certificate}; write a certificate and the key that belongs to it"
            ) from error
        raise AccessError(
            f"{files.certificate} and {files.key} cannot be used: {_why(error)}; write a complete certificate chain "
            "and its key as PEM, without a passphrase"
        ) from error
    return context


def _expiry(files: TlsFiles, server: ssl.SSLContext, certificate: str) -> float:
    """Returns the end of a certificate, from a handshake in memory with a client that trusts this certificate only."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        client.load_verify_locations(cadata=certificate)
        found = _handshake(client, server)
    except (ssl.SSLError, ValueError) as error:
        raise AccessError(f"{files.certificate} cannot be used: {_why(error)}; write a valid certificate") from error
    return float(ssl.cert_time_to_seconds(found["notAfter"]))


def _handshake(client: ssl.SSLContext, server: ssl.SSLContext) -> dict[str, Any]:
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [server.wrap_bio(to_server, to_client, server_side=True), client.wrap_bio(to_client, to_server)]
    waiting = [ends[1], ends[0]]
    while waiting:
        end = waiting.pop(0)
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            waiting.append(end)
    return ends[1].getpeercert() or {}


def _bytes(path: Path) -> bytes:
    try:
        return contents(path, _MAX_BYTES)
    except OSError as error:
        raise AccessError(f"{path} cannot be read: {reason(error)}; name a readable PEM file") from error


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    return getattr(error, "reason", None) or str(error)
