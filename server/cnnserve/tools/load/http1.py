"""Requests over a bare HTTP/1.1 connection."""

import re
import socket
import time


class HttpConnection:
    """One HTTP/1.1 connection that sends the same request again as soon as its response is complete."""

    def __init__(self, address: str, path: str, body: bytes, headers: str) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.ended: list[tuple[float, float]] = []
        self.failed = 0
        head = f"POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
        self._request = head.encode() + body
        self._sent_at = 0.0
        self._buffer = b""
        self._is_free = True

    def fill(self) -> None:
        """Sends the request if no response is awaited."""
        if self._is_free:
            self._is_free = False
            self._sent_at = time.perf_counter()
            self.socket.sendall(self._request)

    def receive(self) -> None:
        """Reads what has arrived. Raises `ConnectionError` if the server has ended the connection."""
        data = self.socket.recv(262144)
        if not data:
            raise ConnectionError("the server closed the connection")
        self._buffer += data
        head, separator, rest = self._buffer.partition(b"\r\n\r\n")
        match = re.search(rb"(?i)content-length: (\d+)", head)
        if not separator or match is None or len(rest) < int(match[1]):
            return
        now = time.perf_counter()
        if head.startswith(b"HTTP/1.1 200"):
            self.ended.append((now, now - self._sent_at))
        else:
            self.failed += 1
        self._buffer = b""
        self._is_free = True
