"""gRPC over a bare HTTP/2 connection.

All requests consist of the same few bytes with different stream numbers. Of a response, the connection reads its
status and its end; the message only if a request may fail with an OK status, as in a stream.
"""

import struct
import time
from collections import deque
from collections.abc import Sequence

from .answers import OK, Judge
from .connecting import Wire
from .hpack import NO_STATUS, StatusReader

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS = 0x1, 0x1, 0x4
_MAX_STREAMS, _INITIAL_WINDOW_SIZE = 3, 4
_WINDOW = 2**31 - 1
_DEFAULT_WINDOW = 65535
_FRAME = 16384


class Connection:
    """One HTTP/2 connection that sends `bodies` in turn, with at most `in_flight` requests at a time.

    `judge` finds the errors in messages. With `streaming`, each request is a message on a call that stays open.
    """

    def __init__(
        self,
        wire: Wire,
        address: str,
        method: str,
        bodies: Sequence[bytes],
        in_flight: int,
        *,
        streaming: bool = False,
        judge: Judge | None = None,
        headers: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.wire = wire
        # When a response ended, when its request was due, and the status.
        self.ended: list[tuple[float, float, str]] = []
        self.last_message = b""
        self._bodies = [b"\0" + len(body).to_bytes(4, "big") + body for body in bodies]
        self._sent = 0
        self._limit = in_flight
        # How many requests the server does not let be in flight on this connection beside the others.
        self.withheld = 0
        self._streaming = streaming
        self._judge = judge
        self._first_headers, self._headers = _header_blocks(address, method, headers, is_encrypted=wire.is_encrypted)
        self._statuses = StatusReader()
        self._next_stream = 1
        self._window = self._stream_window = _DEFAULT_WINDOW
        self._received = 0
        # When the open request of each stream was due.
        self._open: dict[int, float] = {}
        # What has arrived of messages that are read.
        self._messages: dict[int, bytearray] = {}
        # Calls of `streaming` without an open request.
        self._idle: deque[int] = deque()
        # Bodies that flow control holds back: the stream and the rest of the body. `_windows` has their windows.
        self._pending: deque[tuple[int, memoryview]] = deque()
        self._windows: dict[int, int] = {}
        self._buffer = b""
        settings = struct.pack("!HI", _INITIAL_WINDOW_SIZE, _WINDOW)
        self._out = [_PREFACE, _frame(_SETTINGS, 0, 0, settings), _window_update(_WINDOW - _DEFAULT_WINDOW)]

    @property
    def free(self) -> int:
        """How many more requests may be started now."""
        return self._limit - len(self._open)

    @property
    def is_waiting(self) -> bool:
        """Whether responses are missing."""
        return bool(self._open)

    def start(self, due: float) -> None:
        """Starts a request. Its latency counts from `due`, a time of `time.perf_counter`."""
        body = self._bodies[self._sent % len(self._bodies)]
        self._sent += 1
        if self._idle:
            stream = self._idle.popleft()
        else:
            stream = self._next_stream
            self._next_stream += 2
            headers = self._first_headers if stream == 1 else self._headers
            self._out.append(_frame(_HEADERS, _END_HEADERS, stream, headers))
        self._open[stream] = due
        self._send_body(stream, body)

    def flush(self) -> None:
        """Sends what flow control allows."""
        if self._pending:
            self._send_pending()
        if self._out:
            self.wire.send(b"".join(self._out))
            self._out.clear()

    def receive(self) -> None:
        """Reads the frames that have arrived. Raises `ConnectionError` if the server has ended the connection."""
        data = self.wire.receive()
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

    def lose(self, status: str) -> None:
        """Ends all open requests with `status` and closes the connection."""
        self.wire.close()
        now = time.perf_counter()
        self.ended += [(now, due, status) for due in self._open.values()]
        self._open.clear()

    def _send_body(self, stream: int, body: bytes) -> None:
        end = 0 if self._streaming else _END_STREAM
        window = self._windows.get(stream, self._stream_window)
        if len(body) <= min(_FRAME, self._window, window) and not self._pending:
            self._window -= len(body)
            if self._streaming:
                self._windows[stream] = window - len(body)
            self._out.append(_frame(_DATA, end, stream, body))
        else:
            self._windows[stream] = window
            self._pending.append((stream, memoryview(body)))

    def _send_pending(self) -> None:
        end = 0 if self._streaming else _END_STREAM
        for _ in range(len(self._pending)):
            stream, rest = self._pending.popleft()
            if stream not in self._open:  # the server has ended the request before it had its body
                self._windows.pop(stream, None)
                continue
            while rest and (count := min(len(rest), _FRAME, self._window, self._windows[stream])) > 0:
                self._window -= count
                self._windows[stream] -= count
                self._out.append(_frame(_DATA, end if count == len(rest) else 0, stream, rest[:count]))
                rest = rest[count:]
            if rest:
                self._pending.append((stream, rest))
            elif not self._streaming:
                del self._windows[stream]

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _DATA:
            self._take_data(flags, stream, payload)
        elif kind == _HEADERS:
            status = self._statuses.read(payload)
            if flags & _END_STREAM:
                self._end(stream, status)
        elif kind == _RST_STREAM:
            self._end(stream, "stream reset")
        elif kind == _WINDOW_UPDATE:
            self._widen(stream, int.from_bytes(payload, "big"))
        elif kind == _SETTINGS and not flags & _ACK:
            self._settings(payload)
        elif kind == _PING and not flags & _ACK:
            self._out.append(_frame(_PING, _ACK, 0, payload))
        elif kind == _GOAWAY:
            raise ConnectionError(f"the server sent GOAWAY: {payload[8:]!r}")

    def _take_data(self, flags: int, stream: int, payload: bytes) -> None:
        self._received += len(payload)
        if self._received > _WINDOW // 2:
            self._out.append(_window_update(self._received))
            self._received = 0
        if self._judge is not None and stream in self._open:
            message = self._messages.setdefault(stream, bytearray())
            message += payload
            if self._streaming and len(message) >= 5 and len(message) >= 5 + int.from_bytes(message[1:5], "big"):
                self._message_ended(stream, bytes(message[5:]))
        if flags & _END_STREAM:
            self._end(stream, NO_STATUS)

    def _message_ended(self, stream: int, message: bytes) -> None:
        """Ends the open request of a call that stays open."""
        del self._messages[stream]
        assert self._judge is not None
        self.ended.append((time.perf_counter(), self._open.pop(stream), self._judge(message)))
        self._idle.append(stream)

    def _end(self, stream: int, status: str) -> None:
        message = self._messages.pop(stream, b"")
        if (due := self._open.pop(stream, None)) is None:
            if stream in self._idle:
                self._idle.remove(stream)
            return
        if status == OK and self._judge is not None:
            self.last_message = bytes(message[5:])
            # A call of `streaming` that ends has not returned what was asked last.
            status = "stream ended" if self._streaming else self._judge(self.last_message)
        self.ended.append((time.perf_counter(), due, status))

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
            elif key == _MAX_STREAMS:
                self.withheld += max(0, self._limit - value)
                self._limit = min(self._limit, value)
        self._out.append(_frame(_SETTINGS, _ACK, 0, b""))


def _frame(kind: int, flags: int, stream: int, payload: bytes | memoryview) -> bytes:
    return b"".join((len(payload).to_bytes(3, "big"), struct.pack("!BBI", kind, flags, stream), payload))


def _window_update(size: int) -> bytes:
    return _frame(_WINDOW_UPDATE, 0, 0, size.to_bytes(4, "big"))


def _header_blocks(
    address: str, method: str, more: Sequence[tuple[str, str]], *, is_encrypted: bool
) -> tuple[bytes, bytes]:
    """Returns the HPACK of the first request and of all others.

    The first request adds its headers to the server's table; the others refer to the entries of this table.
    """
    post, scheme = b"\x83", b"\x87" if is_encrypted else b"\x86"
    taught = [
        b"\x44" + _text("/" + method),
        b"\x41" + _text(address),
        b"\x5f" + _text("application/grpc"),
        *(b"\x40" + _text(name) + _text(value) for name, value in (("te", "trailers"), *more)),
    ]
    known = bytes(0x80 | index for index in range(61 + len(taught), 61, -1))
    return post + scheme + b"".join(taught), post + scheme + known


def _text(value: str) -> bytes:
    data = value.encode()
    length, rest = min(len(data), 127), len(data) - 127
    size = [length]
    while rest >= 0:
        size.append(rest & 0x7F | (0x80 if rest > 127 else 0))
        rest = (rest >> 7) or -1
    return bytes(size) + data
