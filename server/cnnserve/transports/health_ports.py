"""Ports without TLS and tokens that answer health alone: probes of Kubernetes present no client certificate."""

import asyncio
import contextlib
import importlib
import logging
from collections.abc import AsyncIterator, Iterable

from cnnserve.api.health import SERVICE
from cnnserve.api.methods import INFERENCE, Method
from cnnserve.process.admission import MemoryBudget
from cnnserve.transports import addresses
from cnnserve.transports.grpcio import GrpcioTransport
from cnnserve.transports.http.in_flight import InFlight, Limits

_log = logging.getLogger(__name__)

_MAX_BYTES = 2**16
_GRACE_S = 0.5
_HTTP_RPCS = (f"{INFERENCE}/ServerLive", f"{INFERENCE}/ServerReady")


@contextlib.asynccontextmanager
async def health_ports(
    methods: Iterable[Method], host: str, grpc_port: int | None, http_port: int | None
) -> AsyncIterator[list[str]]:
    """Answers on these ports (None: none) while inside, and gives their URLs, that of HTTP last.

    Raises `OSError` if a port cannot be had.
    """
    table = [*methods]
    urls = []
    async with contextlib.AsyncExitStack() as inside:
        if grpc_port is not None:
            rows = [method for method in table if method.service == SERVICE]
            bound = await inside.enter_async_context(_grpc(rows, host, grpc_port))
            urls.append(addresses.url("grpc", host, bound))
        if http_port is not None:
            rows = [method for method in table if method.name in _HTTP_RPCS]
            bound = await inside.enter_async_context(_http(rows, host, http_port))
            urls.append(addresses.url("http", host, bound))
        yield urls


@contextlib.asynccontextmanager
async def _grpc(methods: list[Method], host: str, port: int) -> AsyncIterator[int]:
    addresses.check_free(host, port, "health_grpc_port")
    # The load of probes is not worth grpc's core.
    server = GrpcioTransport(methods, _MAX_BYTES, reflection=False)
    bound = server.bind(host, port)
    await server.start()
    _log.info("health alone, in plain text: gRPC on port %d", bound)
    try:
        yield bound
    finally:
        await server.stop(_GRACE_S)


@contextlib.asynccontextmanager
async def _http(methods: list[Method], host: str, port: int) -> AsyncIterator[int]:
    listening = addresses.listen(host, port, "health_http_port")
    http = await asyncio.to_thread(importlib.import_module, "cnnserve.transports.http.server")
    bound = listening.getsockname()[1]
    budget = MemoryBudget(2 * _MAX_BYTES)
    server = http.HttpServer(http.routed(methods, Limits(budget, _MAX_BYTES), InFlight()), listening, budget)
    serving = asyncio.create_task(server.serve())
    _log.info("health alone, in plain text: HTTP on port %d", bound)
    try:
        yield bound
    finally:
        server.stop()
        await serving
