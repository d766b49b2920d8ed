"""Puts the method table on `grpc.aio`. Nothing of grpc goes past this file."""

import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, NoReturn

import grpc
from grpc_reflection.v1alpha import reflection

from cnnserve.rpc import status
from cnnserve.rpc.methods import CallContext, Kind, Method

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
        services: defaultdict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = defaultdict(dict)
        for method in methods:
            services[method.service][method.rpc] = _rpc_handler(method)
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
        """Takes no new call, waits for those in flight at most `grace_s` seconds, then cancels the rest."""
        await self._server.stop(grace_s)


def _rpc_handler(method: Method) -> "grpc.RpcMethodHandler[Any, Any]":
    make: Callable[..., grpc.RpcMethodHandler[Any, Any]] = _MAKERS[method.kind]
    return make(
        _unary(method) if method.kind is Kind.UNARY else _streaming(method),
        request_deserializer=method.request.FromString,
        response_serializer=method.response.SerializeToString,
    )


def _unary(method: Method) -> Callable[[Any, Any], Awaitable[Any]]:
    handler: Any = method.handler

    async def behavior(request: Any, context: Any) -> Any:
        try:
            return await handler(request, _call_context(context))
        except Exception as error:
            await _abort(context, error, method.name)

    return behavior


def _streaming(method: Method) -> Callable[[Any, Any], AsyncIterator[Any]]:
    handler: Any = method.handler

    async def behavior(request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            async for response in handler(request, _call_context(context)):
                yield response
        except Exception as error:
            await _abort(context, error, method.name)

    return behavior


def _call_context(context: Any) -> CallContext:
    remaining = context.time_remaining()
    return CallContext(None if remaining is None else time.monotonic_ns() + int(remaining * 1e9))


async def _abort(context: Any, error: Exception, request: str) -> NoReturn:
    told = status.of(error, request)
    await context.abort(_CODES[told.code], told.message, tuple(told.trailers.items()))
    raise AssertionError("abort raises")
