"""Tries grpc's core through the real path: what the core transport relies on is not public, and may change.

A server of its own on a free port of this machine answers one unary call and one stream to itself, and reads from its
sockets while nobody takes events. The last one tells old cores apart: up to grpcio 1.78 they read only while polled, so
a busy event loop would delay new connections and pings.
"""

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.protobuf.wrappers_pb2 import BytesValue

from cnnserve.access.scopes import Scope
from cnnserve.api.methods import CallContext, Kind, Method
from cnnserve.process.admission import MemoryBudget
from cnnserve.process.pressure import MemoryPressure
from cnnserve.transports.core.server import CoreTransport

_TIMEOUT_S = 10.0
_LIMIT = 2**20
# HTTP/2: the client's first bytes, and an empty SETTINGS frame, which the server has to acknowledge.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_ACKNOWLEDGED = bytes((0, 0, 0, 4, 1, 0, 0, 0, 0))


async def problem() -> str | None:
    """Returns what does not work with the installed grpcio, or None."""
    try:
        budget = MemoryBudget(_LIMIT)
        transport = CoreTransport(_METHODS, _LIMIT, budget, MemoryPressure(budget))
        port = transport.bind("127.0.0.1", 0)
        silent = _settings_unread(transport, port)
        await transport.start()
        try:
            return silent or await asyncio.wait_for(asyncio.to_thread(_ask, port), _TIMEOUT_S)
        finally:
            await transport.stop(0)
    except Exception as error:
        # grpc's errors have several lines.
        return " ".join(f"{type(error).__name__}: {error}".split())


def _settings_unread(transport: CoreTransport, port: int) -> str | None:
    transport.listen()
    with socket.create_connection(("127.0.0.1", port), _TIMEOUT_S) as client:
        client.sendall(_PREFACE)
        read = b""
        try:
            while _ACKNOWLEDGED not in read:
                if not (data := client.recv(4096)):
                    return "it closes new connections"
                read += data
        except TimeoutError:
            return "it reads from connections only while the event loop is idle"
    return None


def _ask(port: int) -> str | None:
    # No name of a proxy, no other channel's connection.
    options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options) as channel:
        types: Any = (BytesValue.SerializeToString, BytesValue.FromString)
        sent = BytesValue(value=b"probe")
        if channel.unary_unary("/cnnserve.Probe/Unary", *types)(sent, timeout=_TIMEOUT_S) != sent:
            return "a unary call got another answer"
        answers = channel.stream_stream("/cnnserve.Probe/Stream", *types)(iter((sent, sent)), timeout=_TIMEOUT_S)
        return None if list(answers) == [sent, sent] else "a stream got other answers"


async def _unary(request: BytesValue, _: CallContext) -> BytesValue:
    return request


async def _stream(requests: AsyncIterator[BytesValue], _: CallContext) -> AsyncIterator[BytesValue]:
    async for request in requests:
        yield request


_METHODS = (
    Method("cnnserve.Probe/Unary", BytesValue, BytesValue, _unary, Scope.OPEN),
    Method("cnnserve.Probe/Stream", BytesValue, BytesValue, _stream, Scope.OPEN, Kind.STREAM),
)
