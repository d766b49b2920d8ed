"""Requests over a bare HTTP/1.1 connection, one at a time."""

import re
import time
from collections.abc import Sequence

from .answers import OK
from .connecting import Wire

_LENGTH = re.compile(rb"(?i)\r\ncontent-length: (\d+)")


class HttpConnection:
    """One HTTP/1.1 connection that sends `bodies` in turn. `headers`: lines such as `Content-Type: image/jpeg`."""

    def __init__(self, wire: Wire, address: str, path: str, bodies: Sequence[bytes], headers: Sequence[str]) -> None:
        self.wire = wire
        self.withheld = 0
        # When a response ended, when its request was due, and the status.
        self.ended: list[tuple[float, float, str]] = []
        lines = "".join(f"{header}\r\n" for header in headers)
        self._requests = [
            f"POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {len(body)}\r\n{lines}\r\n".encode() + body
            for body in bodies
        ]
        self._sent = 0
        self._due: float | None = None
        self._out = b""
        self._buffer = b""

    @property
    def free(self) -> int:
        """How many more requests may be started now: 1 or 0."""
        return int(self._due is None)

    @property
    def is_waiting(self) -> bool:
        """Whether a response is missing."""
        return self._due is not None

    def start(self, due: float) -> None:
        """Starts a request. Its latency counts from `due`, a time of `time.perf_counter`."""
        self._due = due
        self._out = self._requests[self._sent % len(self._requests)]
        self._sent += 1

    def flush(self) -> None:
        """Sends the request."""
        if self._out:
            self.wire.send(self._out)
            self._out = b""

    def receive(self) -> None:
        """Reads what has arrived. Raises `ConnectionError` if the server has ended the connection."""
        self._buffer += self.wire.receive()
        head, separator, rest = self._buffer.partition(b"\r\n\r\n")
        match = _LENGTH.search(head)
        if not separator or match is None or len(rest) < int(match[1]) or self._due is None:
            return
        code = head[9:12].decode("latin-1")
        self.ended.append((time.perf_counter(), self._due, OK if code == "200" else f"HTTP {code}"))
        self._buffer = b""
        self._due = None

    def lose(self, status: str) -> None:
        """Ends the open request with `status` and closes the connection."""
        self.wire.close()
        if self._due is not None:
            self.ended.append((time.perf_counter(), self._due, status))
            self._due = None
