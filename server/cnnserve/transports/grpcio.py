"""Puts the method table on `grpc.aio`. Nothing of grpc goes past this file."""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import replace
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError, Message
from grpc_reflection.v1alpha import reflection

from cnnserve.api import answer_size, status
from cnnserve.api.methods import CallContext, Kind, Method
from cnnserve.errors import InvalidInput
from cnnserve.transports.lull import lull


def _is_news(record: logging.LogRecord) -> bool:
    # A client that leaves in the middle of a write is everyday life; grpc logs it as an error with a traceback.
    return "ExecuteBatchError" not in record.getMessage()


logging.getLogger("grpc._cython.cygrpc").addFilter(_is_news)

_MAKERS = {
    Kind.UNARY: grpc.unary_unary_rpc_method_handler,
    Kind.SERVER_STREAM: grpc.unary_stream_rpc_method_handler,
    Kind.STREAM: grpc.stream_stream_rpc_method_handler,
}
_CODES = {code.value[0]: code for code in grpc.StatusCode}


class GrpcioTransport:
    """A gRPC server for a method table."""

    def __init__(self, methods: Iterable[Method], max_message_bytes: int) -> None:
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", max_message_bytes),
                ("grpc.max_send_message_length", max_message_bytes),
                # Two servers on one port would share its clients at random.
                ("grpc.so_reuseport", 0),
            ]
        )
        self._gate = _Gate()
        services: defaultdict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = defaultdict(dict)
        for method in methods:
            services[method.service][method.rpc] = _rpc_handler(method, self._gate, max_message_bytes)
        for service, handlers in services.items():
            self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, handlers)])
        reflection.enable_server_reflection([*services, reflection.SERVICE_NAME], self._server)

    def bind(self, host: str, port: int) -> int:
        """Takes the port (0: a free one) and returns it. Raises `OSError` where it is taken."""
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            bound = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}: {error}") from error
        if bound == 0:
            raise OSError(f"cannot listen on {address}")
        return bound

    async def start(self) -> None:
        """Begins to answer."""
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        """Takes no new connection or call, answers those that came at most `grace_s` seconds long, cancels the rest."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + grace_s
        # Calls that arrive at a stopping grpc server, or wait in it to be taken in, are cut off as CANCELLED, which no
        # client tries again. So calls and answers are held here until no call has come for a while: nobody who waits
        # for an answer sends more. Then grpc tells every client to go elsewhere, and after that they get their answers.
        self._gate.close(loop.time())
        try:
            await lull(lambda: self._gate.last_call, deadline)
            stopping = asyncio.create_task(self._server.stop(max(0.0, deadline - loop.time())))
            # Its first step, which sends the news, comes before anything that waits at the gate.
            await asyncio.sleep(0)
        finally:
            self._gate.open()
        await stopping


class _Gate:
    """Where calls and their answers wait while the server turns to its end; shared by all handlers."""

    def __init__(self) -> None:
        self._is_open = asyncio.Event()
        self._is_open.set()
        self.last_call = 0.0

    def close(self, now: float) -> None:
        """Everything waits from now on."""
        self._is_open.clear()
        self.last_call = now

    def open(self) -> None:
        """Nothing waits any more."""
        self._is_open.set()

    async def enter(self, method: Method) -> None:
        """Before a call is handled."""
        if not self._is_open.is_set() and not method.while_draining:
            self.last_call = asyncio.get_running_loop().time()
            await self._is_open.wait()

    async def leave(self, method: Method) -> None:
        """Before its answer is sent."""
        if not self._is_open.is_set() and not method.while_draining:
            await self._is_open.wait()


def _rpc_handler(method: Method, gate: _Gate, max_message_bytes: int) -> "grpc.RpcMethodHandler[Any, Any]":
    make: Callable[..., grpc.RpcMethodHandler[Any, Any]] = _MAKERS[method.kind]
    return make(
        (_unary if method.kind is Kind.UNARY else _streaming)(method, gate, max_message_bytes),
        # Bytes come through as they are: what cannot be read is the caller's error, and leaves as all errors do. So is
        # an answer that is too large; grpc would call it RESOURCE_EXHAUSTED, which says: try again.
        request_deserializer=None,
        response_serializer=None,
    )


def _unary(method: Method, gate: _Gate, max_bytes: int) -> Callable[[Any, Any], Awaitable[Any]]:
    handler: Any = method.handler

    async def behavior(data: bytes, context: Any) -> Any:
        try:
            await gate.enter(method)
            answer = _serialized(await handler(_parse(method, data), _call_context(context)), max_bytes)
            await gate.leave(method)
            return answer
        except Exception as error:
            await gate.leave(method)
            await _abort(context, error, method)

    return behavior


def _streaming(method: Method, gate: _Gate, max_bytes: int) -> Callable[[Any, Any], AsyncIterator[Any]]:
    handler: Any = method.handler

    async def behavior(data: Any, context: Any) -> AsyncIterator[Any]:
        try:
            await gate.enter(method)
            request = _parse_all(method, data) if method.kind is Kind.STREAM else _parse(method, data)
            async for response in handler(request, replace(_call_context(context), metadata=_metadata(context))):
                yield _serialized(response, max_bytes)
        except Exception as error:
            await _abort(context, error, method)

    return behavior


def _parse(method: Method, data: bytes) -> Any:
    try:
        return method.request.FromString(data)
    except DecodeError as error:
        name = method.request.DESCRIPTOR.full_name
        raise InvalidInput(f"the {len(data)} bytes of the request are no {name}: {error}") from error


def _serialized(answer: Message, max_bytes: int) -> bytes:
    data = answer.SerializeToString()
    answer_size.check(len(data), max_bytes)
    return data


async def _parse_all(method: Method, messages: AsyncIterator[bytes]) -> AsyncIterator[Any]:
    async for data in messages:
        yield _parse(method, data)


def _call_context(context: Any) -> CallContext:
    remaining = context.time_remaining()
    return CallContext(None if remaining is None else time.monotonic_ns() + int(remaining * 1e9))


def _metadata(context: Any) -> dict[str, str]:
    return {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}


async def _abort(context: Any, error: Exception, method: Method) -> NoReturn:
    told = status.of(error, method.name, method.statuses)
    await context.abort(_CODES[told.code], told.message, tuple(told.trailers.items()))
    raise AssertionError("abort raises")
