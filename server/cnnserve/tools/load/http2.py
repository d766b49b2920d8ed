"""gRPC over a bare HTTP/2 connection.

All requests consist of the same few bytes with different stream numbers. Of a response, the connection reads only
whether it has a message, and its end. A response without a message counts as a failed request.
"""

import socket
import struct
import time
from collections import deque

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS = 0x1, 0x1, 0x4
_INITIAL_WINDOW_SIZE = 4
_WINDOW = 2**31 - 1
_DEFAULT_WINDOW = 65535
_FRAME = 16384


class Connection:
    """One HTTP/2 connection that sends `bodies` in turn and keeps `in_flight` requests open."""

    def __init__(
        self, address: str, method: str, bodies: list[bytes], in_flight: int, *, streaming: bool = False
    ) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.ended: list[tuple[float, float]] = []
        self.failed = 0
        self._bodies = [b"\0" + len(body).to_bytes(4, "big") + body for body in bodies]
        self._in_flight = in_flight
        self._streaming = streaming
        self._first_headers, self._headers = _header_blocks(address, method)
        self._next_stream = 1
        self._window = self._stream_window = _DEFAULT_WINDOW
        self._received = 0
        # By stream: the time of the request, and the number of bytes of its response.
        self._open: dict[int, list[float]] = {}
        # Bodies that flow control holds back: the stream and the rest of the body. `_windows` has their windows.
        self._pending: deque[tuple[int, memoryview]] = deque()
        self._windows: dict[int, int] = {}
        self._buffer = b""
        settings = struct.pack("!HI", _INITIAL_WINDOW_SIZE, _WINDOW)
        self._out = [_PREFACE, _frame(_SETTINGS, 0, 0, settings), _window_update(_WINDOW - _DEFAULT_WINDOW)]

    def fill(self) -> None:
        """Opens requests until `in_flight` are open, and sends what flow control allows."""
        while len(self._open) < self._in_flight:
            self._request()
        self._send_pending()
        if self._out:
            self.socket.sendall(b"".join(self._out))
            self._out.clear()

    def receive(self) -> None:
        """Reads the frames that have arrived. Raises `ConnectionError` if the server has ended the connection."""
        data = self.socket.recv(262144)
        if not data:
            raise ConnectionError("the server closed the connection")
        buffer = self._buffer + data if self._buffer else data
        position, size = 0, len(buffer)
        while size - position >= 9:
            length = int.from_bytes(buffer[position : position + 3], "big")
            end = position + 9 + length
            if end > size:
                break
            stream = int.from_bytes(buffer[position + 5 : position + 9], "big")
            self._take(buffer[position + 3], buffer[position + 4], stream, buffer[position + 9 : end])
            position = end
        self._buffer = buffer[position:]

    def _request(self) -> None:
        stream, body = self._next_stream, self._bodies[(self._next_stream // 2) % len(self._bodies)]
        self._out.append(_frame(_HEADERS, _END_HEADERS, stream, self._first_headers if stream == 1 else self._headers))
        self._next_stream += 2
        self._open[stream] = [time.perf_counter(), 0]
        self._send_body(stream, body)

    def _send_body(self, stream: int, body: bytes) -> None:
        end = 0 if self._streaming else _END_STREAM
        if len(body) <= min(_FRAME, self._window, self._stream_window) and not self._pending:
            self._window -= len(body)
            self._out.append(_frame(_DATA, end, stream, body))
        else:
            self._windows[stream] = self._stream_window
            self._pending.append((stream, memoryview(body)))

    def _send_pending(self) -> None:
        end = 0 if self._streaming else _END_STREAM
        for _ in range(len(self._pending)):
            stream, rest = self._pending.popleft()
            while rest and (count := min(len(rest), _FRAME, self._window, self._windows[stream])) > 0:
                self._window -= count
                self._windows[stream] -= count
                self._out.append(_frame(_DATA, end if count == len(rest) else 0, stream, rest[:count]))
                rest = rest[count:]
            if rest:
                self._pending.append((stream, rest))
            else:
                del self._windows[stream]

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _DATA:
            self._received += len(payload)
            if self._received > _WINDOW // 2:
                self._out.append(_window_update(self._received))
                self._received = 0
            self._open[stream][1] += len(payload)
            if self._streaming:
                self._next_message(stream, payload)
        elif kind in (_HEADERS, _RST_STREAM):
            if kind == _RST_STREAM or flags & _END_STREAM:
                self._end(stream)
        elif kind == _WINDOW_UPDATE:
            self._widen(stream, int.from_bytes(payload, "big"))
        elif kind == _SETTINGS and not flags & _ACK:
            self._settings(payload)
        elif kind == _PING and not flags & _ACK:
            self._out.append(_frame(_PING, _ACK, 0, payload))
        elif kind == _GOAWAY:
            raise ConnectionError(f"the server sent GOAWAY: {payload[8:]!r}")

    def _next_message(self, stream: int, payload: bytes) -> None:
        """Sends the stream's next message if a response is complete; small responses come in one frame each."""
        if stream in self._windows or len(payload) < 5 or 5 + int.from_bytes(payload[1:5], "big") != len(payload):
            return
        now = time.perf_counter()
        self.ended.append((now, now - self._open[stream][0]))
        self._open[stream][0] = now
        # The server's window for a stream grows by what it has read.
        self._send_body(stream, self._bodies[0])

    def _end(self, stream: int) -> None:
        if (state := self._open.pop(stream, None)) is None:
            return
        now = time.perf_counter()
        if state[1]:
            self.ended.append((now, now - state[0]))
        else:
            self.failed += 1

    def _widen(self, stream: int, size: int) -> None:
        if stream == 0:
            self._window += size
        elif stream in self._windows:
            self._windows[stream] += size

    def _settings(self, payload: bytes) -> None:
        for key, value in struct.iter_unpack("!HI", payload):
            if key == _INITIAL_WINDOW_SIZE:
                for stream in self._windows:
                    self._windows[stream] += value - self._stream_window
                self._stream_window = value
        self._out.append(_frame(_SETTINGS, _ACK, 0, b""))


def _frame(kind: int, flags: int, stream: int, payload: bytes | memoryview) -> bytes:
    return b"".join((len(payload).to_bytes(3, "big"), struct.pack("!BBI", kind, flags, stream), payload))


def _window_update(size: int) -> bytes:
    return _frame(_WINDOW_UPDATE, 0, 0, size.to_bytes(4, "big"))


def _header_blocks(address: str, method: str) -> tuple[bytes, bytes]:
    """Returns the HPACK of the first request and of all others.

    The first request adds four headers to the server's table; the others refer to the entries of this table.
    """
    post, http = b"\x83", b"\x86"
    taught = (
        b"\x44" + _text("/" + method)
        + b"\x41" + _text(address)
        + b"\x5f" + _text("application/grpc")
        + b"\x40" + _text("te") + _text("trailers")
    )  # fmt: skip
    known = bytes(0x80 | index for index in (65, 64, 63, 62))
    return post + http + taught, post + http + known


def _text(value: str) -> bytes:
    data = value.encode()
    if len(data) > 126:
        raise ValueError(f"{value!r} has {len(data)} bytes, the limit is 126")
    return bytes([len(data)]) + data
