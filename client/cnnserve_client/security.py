"""Reads the files of TLS and decides to which addresses a token may be sent. Imports neither grpc nor numpy."""

import ipaddress
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .arguments import wrong
from .errors import InvalidInputError

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Tls:
    """The PEM files of TLS connections.

    Args:
        root_certificates: certificates of the authorities that may issue the server's certificate. None: the ones that
            come with gRPC.
        certificate: certificate of this client, for servers that require one.
        key: private key of `certificate`.

    Raises:
        InvalidInputError: only one of `certificate` and `key` is given.
    """

    root_certificates: PathLike | None = None
    certificate: PathLike | None = None
    key: PathLike | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            missing = "key" if self.key is None else "certificate"
            raise InvalidInputError(f"{missing} is missing: certificate and key must be given together")

    def read(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """Returns root certificates, key and certificate chain: the arguments of `grpc.ssl_channel_credentials`.

        Raises `InvalidInputError` if a file cannot be read or is no PEM file. gRPC would give no such reason; its
        connections would just fail.
        """
        return (
            _pem("root_certificates", self.root_certificates, "CERTIFICATE"),
            _pem("key", self.key, "PRIVATE KEY"),
            _pem("certificate", self.certificate, "CERTIFICATE"),
        )


def bearer(token: str, addresses: Iterable[str], *, encrypted: bool, over_plain_text: bool) -> tuple[str, str] | None:
    """Returns the gRPC metadata that carries the token, or None if `token` is empty.

    Raises:
        InvalidInputError: the token has characters that a header cannot carry, or it would go to another machine
            without TLS although `over_plain_text` is False.
    """
    if not isinstance(token, str):
        raise InvalidInputError(f"token has type {type(token).__name__}: expected text, or empty text for no token")
    if not token:
        return None
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise InvalidInputError("token has characters that a header cannot carry: use printable ASCII, no spaces")
    if not (encrypted or over_plain_text):
        for address in addresses:
            if not is_local(address):
                raise InvalidInputError(
                    f"the token would go to {address} without TLS: use TLS, or set token_over_plain_text if the "
                    "network is safe"
                )
    return "authorization", f"Bearer {token}"


def is_local(address: str) -> bool:
    """Returns whether traffic to the address stays on this machine: a Unix socket, localhost or a loopback IP."""
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    host = address.rpartition(":")[0] if address.count(":") == 1 or "]:" in address else address
    host = host.strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _pem(name: str, path: PathLike | None, kind: str) -> bytes | None:
    if path is None:
        return None
    try:
        data = Path(path).read_bytes()
    except TypeError as error:
        raise wrong(name, path, "the path of a PEM file") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InvalidInputError(f"{name}: cannot read {os.fspath(path)!r}: {reason}") from error
    if f"{kind}-----".encode() not in data:
        raise InvalidInputError(f"{name}: {os.fspath(path)!r} contains no PEM {kind.lower()}")
    return data
