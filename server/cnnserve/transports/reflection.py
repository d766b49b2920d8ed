"""Server reflection as a row of the method table, for both gRPC transports."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

from grpc_reflection.v1alpha import reflection, reflection_pb2

from cnnserve.api import streams
from cnnserve.api.methods import Kind, Method
from cnnserve.transports.symbols import SymbolPool


def reflection_method(services: Iterable[str], draining: asyncio.Event) -> Method:
    """Returns the RPC that lists and describes `services` and itself. Its streams end when `draining` is set."""
    servicer = reflection.aio.ReflectionServicer([*services, reflection.SERVICE_NAME], SymbolPool())

    def info(requests: AsyncIterator[Any], _: Any) -> Any:
        return servicer.ServerReflectionInfo(streams.until(requests, draining), None)

    return Method(
        f"{reflection.SERVICE_NAME}/ServerReflectionInfo",
        reflection_pb2.ServerReflectionRequest,
        reflection_pb2.ServerReflectionResponse,
        info,
        Kind.STREAM,
    )
