"""Opens the sockets of the load generator: plain TCP, or TLS with the certificates of the user."""

import socket
import ssl
from collections.abc import Sequence
from pathlib import Path

_TIMEOUT_S = 60.0
_CHUNK = 262144


class Wire:
    """One connection to the server. Reading never waits; sending waits until the server takes the bytes."""

    def __init__(self, address: str, tls: ssl.SSLContext | None = None) -> None:
        host, _, port = address.rpartition(":")
        host = host.strip("[]")
        self.socket: socket.socket = socket.create_connection((host, int(port)), timeout=_TIMEOUT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.is_encrypted = tls is not None
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_hostname=host)

    def fileno(self) -> int:
        """Returns the number of the socket, for selectors."""
        return self.socket.fileno()

    def send(self, data: bytes) -> None:
        """Sends all bytes."""
        self.socket.sendall(data)

    def receive(self) -> bytes:
        """Returns what has arrived: no bytes if TLS has read records without any.

        Raises:
            ConnectionError: the server has closed the connection.
        """
        if not self.is_encrypted:
            data = self.socket.recv(_CHUNK)
        else:
            read = self._decrypted()
            if read is None:
                return b""
            data = read
        if not data:
            raise ConnectionError("the server closed the connection")
        return data

    def _decrypted(self) -> bytes | None:
        """Returns all bytes that TLS can decrypt now; b"" at the end of the connection, None if there are none yet."""
        chunks: list[bytes] = []
        self.socket.settimeout(0)
        try:
            while chunk := self.socket.recv(_CHUNK):
                chunks.append(chunk)
        except ssl.SSLWantReadError:
            return b"".join(chunks) or None
        finally:
            self.socket.settimeout(_TIMEOUT_S)
        return b"".join(chunks)

    def close(self) -> None:
        """Closes the connection."""
        self.socket.close()


def tls_context(
    protocols: Sequence[str], roots: Path | None, certificate: Path | None, key: Path | None
) -> ssl.SSLContext:
    """Returns the context of TLS connections. `protocols` are those of ALPN.

    Without `roots`, the authorities that the operating system trusts may issue the server's certificate.
    """
    context = ssl.create_default_context(cafile=roots)
    context.set_alpn_protocols([*protocols])
    if certificate is not None:
        context.load_cert_chain(certificate, key)
    return context
