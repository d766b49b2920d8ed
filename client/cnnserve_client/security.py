"""TLS and tokens: what is read, and where a token may go. Imports nothing heavy."""

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
    """An encrypted connection; the paths are of PEM files.

    `root_certificates` vouch for the server (None: those that gRPC brings along). `certificate` and `key` prove to the
    server who asks, where it wants to know.
    """

    root_certificates: PathLike | None = None
    certificate: PathLike | None = None
    key: PathLike | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            missing = "key" if self.key is None else "certificate"
            raise InvalidInputError(f"{missing} is missing: a client certificate and its key go together")

    def read(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """Root certificates, key and certificate chain, in the order of gRPC's function.

        Raises `InvalidInputError` for a file that cannot be read or is no PEM: gRPC would only never connect.
        """
        return (
            _pem("root_certificates", self.root_certificates, "CERTIFICATE"),
            _pem("key", self.key, "PRIVATE KEY"),
            _pem("certificate", self.certificate, "CERTIFICATE"),
        )


def bearer(token: str, addresses: Iterable[str], *, encrypted: bool, over_plain_text: bool) -> tuple[str, str] | None:
    """The header that carries a token; None without one.

    Raises:
        InvalidInputError: the token cannot be a header, or everybody on the network could read it.
    """
    if not isinstance(token, str):
        raise InvalidInputError(f"token is a {type(token).__name__}: expected text, or an empty one for none")
    if not token:
        return None
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise InvalidInputError("token holds characters that no token has: expected printable ASCII without spaces")
    if not (encrypted or over_plain_text):
        for address in addresses:
            if not is_local(address):
                raise InvalidInputError(
                    f"a token would go to {address} in plain text: use TLS, or say that the network is safe "
                    "(token_over_plain_text)"
                )
    return "authorization", f"Bearer {token}"


def is_local(address: str) -> bool:
    """Whether nothing leaves this machine on the way to the address."""
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
        raise InvalidInputError(f"{name}: {os.fspath(path)!r} holds no PEM {kind.lower()}")
    return data
