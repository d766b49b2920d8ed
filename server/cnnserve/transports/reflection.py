"""Server reflection as a row of the method table, for both gRPC transports."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

from grpc_reflection.v1alpha import reflection, reflection_pb2

from cnnserve.access.scopes import Scope
from cnnserve.api import streams
from cnnserve.api.methods import Kind, Method
from cnnserve.transports.symbols import SymbolPool


def described(methods: Iterable[Method], draining: asyncio.Event) -> list[Method]:
    """Returns the methods, and the RPC that describes them and itself. Its streams end when `draining` is set."""
    rows = [*methods]
    services = sorted({method.service for method in rows})
    servicer = reflection.aio.ReflectionServicer([*services, reflection.SERVICE_NAME], SymbolPool())

    def info(requests: AsyncIterator[Any], _: Any) -> Any:
        return servicer.ServerReflectionInfo(streams.until(requests, draining), None)

    name = f"{reflection.SERVICE_NAME}/ServerReflectionInfo"
    request, response = reflection_pb2.ServerReflectionRequest, reflection_pb2.ServerReflectionResponse
    return [*rows, Method(name, request, response, info, Scope.READ, Kind.STREAM)]
