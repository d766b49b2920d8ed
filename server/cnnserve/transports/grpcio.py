"""Puts the method table on `grpc.aio`, grpcio's public asynchronous server."""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import grpc

from cnnserve.access.accounts import Account
from cnnserve.access.guard import Guard
from cnnserve.access.tls import Tls
from cnnserve.api import status
from cnnserve.api.methods import CallContext, Kind, Method
from cnnserve.errors import InferenceFailed
from cnnserve.transports import addresses
from cnnserve.transports.calls import (
    Gate,
    PeerLimits,
    admit,
    channel_arguments,
    headers_in,
    parse,
    quick,
    serialized,
)
from cnnserve.transports.credentials import server_credentials
from cnnserve.transports.lull import lull
from cnnserve.transports.reflection import described


def _is_news(record: logging.LogRecord) -> bool:
    # Clients may leave at any time, also during a write; grpc logs that as an error with a traceback.
    return "ExecuteBatchError" not in record.getMessage()


logging.getLogger("grpc._cython.cygrpc").addFilter(_is_news)

_MAKERS = {
    # With a unary handler, grpc.aio leaves a call that brings no message without an answer until its deadline.
    Kind.UNARY: grpc.stream_unary_rpc_method_handler,
    Kind.SERVER_STREAM: grpc.stream_stream_rpc_method_handler,
    Kind.STREAM: grpc.stream_stream_rpc_method_handler,
}
_CODES = {code.value[0]: code for code in grpc.StatusCode}


class GrpcioTransport:
    """A gRPC server for a method table. Use on one event loop."""

    def __init__(
        self,
        methods: Iterable[Method],
        max_message_bytes: int,
        peers: PeerLimits = PeerLimits(),  # noqa: B008 - it is frozen
        *,
        guard: Guard | None = None,
        reflection: bool = True,
    ) -> None:
        self._server = grpc.aio.server(options=channel_arguments(max_message_bytes, peers))
        self._gate = Gate()
        self._draining = asyncio.Event()
        services: defaultdict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = defaultdict(dict)
        for method in described(methods, self._draining) if reflection else methods:
            services[method.service][method.rpc] = _rpc_handler(method, self._gate, max_message_bytes, guard)
        for service, handlers in services.items():
            self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, handlers)])

    def bind(self, host: str, port: int, tls: Tls | None = None) -> int:
        """Takes the port (0: a free one) and returns it. Raises `OSError` if it is taken."""
        add = self._server.add_insecure_port
        if tls is not None:
            add = partial(self._server.add_secure_port, server_credentials=server_credentials(tls))
        return addresses.bind(add, addresses.joined(host, port))

    def bind_unix(self, path: Path) -> None:
        """Listens on a Unix socket as well. Raises `OSError` if another server does."""
        addresses.bind(self._server.add_insecure_port, addresses.prepare_unix(path))

    async def start(self) -> None:
        """Starts to accept calls."""
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        """Stops the server. It still accepts calls until none has arrived for 0.1 s (after 1 s at the latest).

        Accepted calls have `grace_s` seconds, counted from the start of `stop`; then the server cancels them.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + grace_s
        # Calls that arrive at a stopping grpc server, or wait in it to be accepted, are CANCELLED, which no client
        # tries again. So calls and responses are held here until no call has come for a while: a client that waits
        # for a response sends no more calls. Then grpc tells all clients to use another connection, and after that the
        # calls are handled and the responses sent.
        self._gate.close(loop.time())
        self._draining.set()
        try:
            await lull(lambda: self._gate.last_call, deadline)
            stopping = asyncio.create_task(self._server.stop(max(0.0, deadline - loop.time())))
            # Its first step, which tells the clients, comes before anything that waits at the gate.
            await asyncio.sleep(0)
        finally:
            self._gate.open()
        await stopping


def _rpc_handler(
    method: Method, gate: Gate, max_message_bytes: int, guard: Guard | None
) -> "grpc.RpcMethodHandler[Any, Any]":
    make: Callable[..., grpc.RpcMethodHandler[Any, Any]] = _MAKERS[method.kind]
    return make(
        (_unary if method.kind is Kind.UNARY else _streaming)(method, gate, max_message_bytes, guard),
        # Requests and responses stay bytes, so this module reports all errors. grpc would report a request that cannot
        # be read as its own error, and a response that is too large as RESOURCE_EXHAUSTED, so that clients try again.
        request_deserializer=None,
        response_serializer=None,
    )


def _unary(method: Method, gate: Gate, max_bytes: int, guard: Guard | None) -> Callable[[Any, Any], Awaitable[Any]]:
    handler: Any = method.handler

    async def behavior(messages: AsyncIterator[bytes], context: Any) -> Any:
        try:
            account = admit(guard, method, context.invocation_metadata() or (), context.peer, context.auth_context)
            data = await anext(aiter(messages), None)
            if not method.while_draining:
                await gate.arrived()
            call = _call_context(context, account)
            response = await quick(method, data, call)
            if response is None:
                response = serialized(await handler(parse(method, data, max_bytes), call), max_bytes)
            if not method.while_draining:
                await gate.passed()
            return response
        except (Exception, asyncio.CancelledError) as error:
            _raise_if_cancelled(error)
            if not method.while_draining:
                await gate.passed()
            await _abort(context, error, method)

    return behavior


def _streaming(
    method: Method, gate: Gate, max_bytes: int, guard: Guard | None
) -> Callable[[Any, Any], AsyncIterator[Any]]:
    handler: Any = method.handler

    async def behavior(messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[Any]:
        try:
            account = admit(guard, method, context.invocation_metadata() or (), context.peer, context.auth_context)
            if not method.while_draining:
                await gate.arrived()
            if method.kind is Kind.STREAM:
                request: Any = _parse_all(method, messages, max_bytes, account)
            else:
                request = parse(method, await anext(aiter(messages), None), max_bytes)
            async for response in handler(
                request, replace(_call_context(context, account), metadata=_metadata(context))
            ):
                yield serialized(response, max_bytes)
        except (Exception, asyncio.CancelledError) as error:
            _raise_if_cancelled(error)
            await _abort(context, error, method)

    return behavior


def _raise_if_cancelled(error: BaseException) -> None:
    """Raises a cancellation that came from outside. One that the handler made itself is an error as any other."""
    task = asyncio.current_task()
    if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
        raise error


async def _parse_all(
    method: Method, messages: AsyncIterator[bytes], max_bytes: int, account: Account | None
) -> AsyncIterator[Any]:
    async for data in messages:
        yield parse(method, data, max_bytes)
        # The first message was counted as the call.
        if account is not None:
            await account.message()


def _call_context(context: Any, account: Account | None) -> CallContext:
    remaining = context.time_remaining()
    deadline_ns = None if remaining is None else time.monotonic_ns() + int(remaining * 1e9)
    return CallContext(deadline_ns, context.peer(), account=account, **headers_in(context.invocation_metadata() or ()))


def _metadata(context: Any) -> dict[str, str]:
    return {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}


async def _abort(context: Any, error: BaseException, method: Method) -> NoReturn:
    known = error if isinstance(error, Exception) else InferenceFailed("the handler cancelled itself")
    told = status.of(known, method.name, method.statuses)
    # Half a surrogate pair, which grpc cannot encode, becomes a question mark.
    text = told.message.encode(errors="replace").decode()
    await context.abort(_CODES[told.code], text, tuple(told.trailers.items()))
    raise AssertionError("abort raises")
