"""One connection of the HTTP port: uvicorn's protocol on httptools, with the limits that both of them lack.

uvicorn calls the methods whose names begin with `on_` for parts of a request, as httptools finds them in the bytes. An
error that they raise ends the parsing, and with it the connection.
"""

import asyncio
import socket
from collections import deque
from typing import Any, cast

import httptools
from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from cnnserve.access.addresses import origin_of
from cnnserve.access.tls import names_of
from cnnserve.transports.http import heads
from cnnserve.transports.http.answers import answer
from cnnserve.transports.http.connections import Connections
from cnnserve.transports.http.pace import Pace

SENT = "cnnserve.sent"
NAMES = "cnnserve.names"
LIVE = "/v2/health/live"
# Of one request: its first line, headers and trailers; all bytes between two parts; requests sent in advance.
_MAX_HEAD_BYTES = 64 * 2**10
_MAX_HEADERS = 100
_MAX_PIPELINED = 32
# A chunk costs the event loop as much as 10 kB do. So there may be this many, and one more for so many bytes.
_MAX_CHUNKS = 4096
_BYTES_PER_CHUNK = 256
# If lines (of chunks, of headers) are shorter than that on average, so many bytes are parsed in one turn of the event
# loop: 1,600 chunks of one byte take 2 ms.
_LINE_BYTES = 64
_SLICE = 8 * 2**10
# How long the system of a client that has left takes to say so.
_LEFT_S = 0.05
_TCP_CLOSE = 7
# Without it, as on macOS, the server answers also a client that has left.
_TCP_INFO: int | None = getattr(socket, "TCP_INFO", None)


class _Refused(Exception):
    """Ends the parsing. httptools reports it as an error of its own."""


class _Transport:
    """The transport, except that uvicorn's `close` waits for clients that still send."""

    def __init__(self, transport: asyncio.Transport, connection: "Connection") -> None:
        self._transport = transport
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    def resume_reading(self) -> None:
        if not self._connection.slices:
            self._transport.resume_reading()

    def close(self) -> None:
        self._connection.end()

    def is_closing(self) -> bool:
        return self._connection.has_ended or self._transport.is_closing()


class Connection(HttpToolsProtocol):
    """One connection. `connections` has its limits."""

    def __init__(self, connections: Connections, **settings: Any) -> None:
        super().__init__(**settings)
        self._connections = connections
        self._limits = connections.limits
        self.has_ended = False
        self._raw: asyncio.Transport
        # What came and is not parsed yet.
        self.slices: deque[memoryview] = deque()
        # Without a complete response. uvicorn tells only the last of them that the client has gone.
        self._cycles: list[RequestResponseCycle] = []
        self._refusal = (400, "the bytes are no HTTP request")
        self._in_head = False
        self._pace = Pace(self.loop.time())
        self._head_bytes = self._headers = self._chunks = self._body_bytes = self._unparsed_bytes = 0
        self._half_closed = False
        self._is_tls = False
        self._names: tuple[str, ...] = ()
        self.address = ""
        self._opened_at = 0.0

    # What the event loop tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begins."""
        self._raw = cast("asyncio.Transport", transport)
        secured = transport.get_extra_info("ssl_object")
        self._is_tls = secured is not None
        self._names = names_of(secured.getpeercert()) if secured is not None else ()
        self.address = origin_of(transport.get_extra_info("peername"))
        self._opened_at = self._quiet_since = self.loop.time()
        super().connection_made(cast("asyncio.Transport", _Transport(self._raw, self)))
        self._connections.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends: the client has gone."""
        self._connections.closed(self)
        self.has_ended = True
        self.slices.clear()
        for cycle in self._cycles:
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parses what came. Errors are the client's, and it is told so."""
        if self.has_ended:
            return
        self._unset_keepalive_if_required()
        self._pace.received(len(data), self.loop.time())
        if len(data) > _SLICE and data.count(b"\n") * _LINE_BYTES > len(data):
            self.slices.extend(memoryview(data)[start : start + _SLICE] for start in range(0, len(data), _SLICE))
            self._raw.pause_reading()
            self.loop.call_soon(self._parse_slices)
        else:
            self._parse(data)

    def _parse_slices(self) -> None:
        if self.slices:
            self._parse(self.slices.popleft())
        if self.slices:
            self.loop.call_soon(self._parse_slices)
        elif not self._raw.is_closing() and (self.has_ended or not self.flow.read_paused):
            self._raw.resume_reading()

    def _parse(self, data: bytes | memoryview) -> None:
        self._unparsed_bytes += len(data)
        try:
            self._feed(data)
            if self._unparsed_bytes > _MAX_HEAD_BYTES + len(data):
                self._refuse(431, f"a header has more than {_MAX_HEAD_BYTES} bytes")
            self._pace.parsed(self.loop.time(), in_head=self._in_head)
        except (httptools.HttpParserError, _Refused):
            self._tell_refusal()

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client sends no more. If it has sent whole requests, they are answered, unless the client has left."""
        if self._has_answered or self.cycle.more_body or self._in_head or self._is_tls:
            # TLS has no half-closed connections.
            return False
        self._half_closed = True
        self.cycle.keep_alive = False
        if self.scope["http_version"] == "1.1" and not self.cycle.response_started:
            # The system of a client that has left replies to that with a reset; clients that wait skip it.
            self._raw.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.loop.call_later(_LEFT_S, self._drop_if_left)
        return True

    # What httptools finds.

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = self._headers = self._chunks = self._body_bytes = 0

    def on_url(self, url: bytes) -> None:
        """A part of the first line."""
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or one trailer."""
        self._headers += 1
        if self._headers > _MAX_HEADERS:
            self._refuse(431, f"the request has more than {_MAX_HEADERS} headers")
        self._count_head(len(name) + len(value))
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is complete: the application gets the request."""
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                self._refuse(400, "this server is no proxy: method CONNECT is not supported")
            # To another protocol, which clients may propose and servers may ignore: see `_feed`.
            return
        if len(self.pipeline) >= _MAX_PIPELINED:
            # As HTTP allows: the client repeats on a new connection what was not answered on this one.
            self._refuse(503, "too many requests were sent before their responses")
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (not hosts and self.parser.get_http_version() == "1.1"):
            self._refuse(400, f"the request has {hosts} Host headers, expected one")
        self.app = self.config.loaded_app
        if self._connections.is_full and self.url.partition(b"?")[0] != LIVE.encode():
            self.app = _busy(self._limits.most)
        extensions = {SENT: self.flow.drain, NAMES: self._names}
        self.scope["extensions"] = extensions  # type: ignore[typeddict-item]
        super().on_headers_complete()
        if self._limits.age_s and self.loop.time() - self._opened_at > self._limits.age_s:
            self.cycle.keep_alive = False
        self._cycles = [cycle for cycle in self._cycles if not cycle.response_complete]
        self._cycles.append(self.cycle)
        self._in_head = False
        self._unparsed_bytes = 0

    def on_chunk_header(self) -> None:
        """A chunk begins."""
        self._chunks += 1
        self._unparsed_bytes = 0
        if self._chunks > _MAX_CHUNKS + self._body_bytes // _BYTES_PER_CHUNK:
            self._refuse(400, f"the body's {self._chunks} chunks have {self._body_bytes} bytes; send larger chunks")

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._body_bytes += len(body)
        self._unparsed_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is complete, also if it was answered before."""
        if self._in_head:
            return
        super().on_message_complete()
        self.cycle.more_body = False

    # What `Connections` asks.

    @property
    def is_idle(self) -> bool:
        """Whether there is no request to answer and no response on its way."""
        return self._has_answered and not self._unsent

    @property
    def is_stuck(self) -> bool:
        """Whether its client hardly sends the body, or hardly reads the response, of its request."""
        return self._has_work and self._pace.stuck_s(self.loop.time()) > self._limits.unread_if_full_s

    def look(self, now: float, *, memory_is_full: bool) -> None:
        """Ends whatever takes longer than its limit."""
        pace, limits = self._pace, self._limits
        pace.look(self._unsent, now, works=self._has_work)
        if self._unsent:
            if pace.stuck_s(now) > (limits.unread_if_full_s if memory_is_full else limits.unread_s):
                self.drop()
        elif self.has_ended:
            if pace.quiet_s(now) > limits.linger_s:
                self.drop()
        elif pace.head_s(now) > limits.head_s:
            self._refusal = (408, f"the headers did not end within {limits.head_s:g} s")
            self._tell_refusal()
        elif self.is_idle and pace.quiet_s(now) > limits.idle_s:
            self.drop()
        elif memory_is_full and self._is_receiving and pace.stuck_s(now) > limits.unread_if_full_s:
            self._refusal = (408, "the body comes too slowly for a server whose memory is full; retry")
            self._tell_refusal()
        if self._half_closed:
            self._drop_if_left()

    def shutdown(self) -> None:
        """Ends when the current request has its response: the server stops."""
        if self._has_answered:
            self._raw.close()
        else:
            self.cycle.keep_alive = False

    def drop(self) -> None:
        """Closes the connection at once."""
        self._raw.abort()

    def end(self) -> None:
        """Closes the connection when everything was sent. If the client still sends, it has some seconds for that."""
        if self.has_ended or self._raw.is_closing():
            return
        self.has_ended = True
        self._pace.ended(self.loop.time())
        still_sends = self._in_head or (self.cycle is not None and self.cycle.more_body)
        if not still_sends or self._half_closed:
            self._raw.close()
            return
        # What still comes is dropped.
        self.slices.clear()
        self._raw.resume_reading()
        if self._raw.can_write_eof():
            self._raw.write_eof()

    # Inside.

    @property
    def _has_answered(self) -> bool:
        return self.cycle is None or (self.cycle.response_complete and not self.pipeline)

    @property
    def _is_receiving(self) -> bool:
        return not self._has_answered and self.cycle.more_body

    @property
    def _has_work(self) -> bool:
        return bool(self._unsent) or self._is_receiving

    @property
    def _unsent(self) -> int:
        return self._raw.get_write_buffer_size()

    def _feed(self, data: bytes | memoryview) -> None:
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                # httptools ends the request at its head, also if a body follows. A new parser gets a head without the
                # proposal, because this one skips all that follows if the client wants to close.
                old = self.parser
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
                version = old.get_http_version().encode()
                self.parser.feed_data(heads.without_upgrade(old.get_method(), self.url, version, self.headers))
                data = data[upgrade.args[0] :]

    def _count_head(self, size: int) -> None:
        self._unparsed_bytes = 0
        self._head_bytes += size
        if self._head_bytes > _MAX_HEAD_BYTES:
            self._refuse(431, f"the headers have more than {_MAX_HEAD_BYTES} bytes")

    def _refuse(self, status: int, text: str) -> None:
        self._refusal = (status, text)
        raise _Refused

    def _tell_refusal(self) -> None:
        """Responds with the refusal. If earlier requests have no response yet, they get theirs instead."""
        if not self._has_answered:
            if self._in_head or not self.cycle.more_body:
                self.cycle.keep_alive = False
                self.flow.pause_reading()
                return
            # The body of the current request: the application is told that the client has gone.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if self.cycle.response_started or self.pipeline:
                self.drop()
                return
        self._raw.write(heads.refusal(*self._refusal))
        self._in_head = True
        self.end()

    def _drop_if_left(self) -> None:
        connected: socket.socket = self._raw.get_extra_info("socket")
        if connected.family == socket.AF_UNIX or self._raw.is_closing() or _TCP_INFO is None:
            return
        (state,) = connected.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 1)
        if state == _TCP_CLOSE:
            self.drop()


def _busy(most: int) -> Response:
    text = f"the server has its {most} HTTP connections; try again later"
    return answer({"error": text}, 503, {"Connection": "close"})
