"""Which gRPC transport serves: the one on grpc's core if it works with the installed grpcio, else `grpc.aio`."""

import asyncio
import importlib
import logging
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

import grpc

from cnnserve.access.guard import Guard
from cnnserve.access.tls import Tls
from cnnserve.api.methods import Method
from cnnserve.process.admission import MemoryBudget
from cnnserve.process.pressure import MemoryPressure
from cnnserve.transports.calls import PeerLimits
from cnnserve.transports.grpcio import GrpcioTransport

_log = logging.getLogger(__name__)

# Minor versions of grpcio that the transport's own tests ran with. It uses a module of grpcio that is not public.
_TESTED = ((1, 80), (1, 85))


class GrpcTransport(Protocol):
    """A gRPC server for a method table."""

    def bind(self, host: str, port: int, tls: Tls | None = None) -> int:
        """Takes the port (0: a free one) and returns it. Raises `OSError` if it is taken."""

    def bind_unix(self, path: Path) -> None:
        """Listens on a Unix socket as well. Raises `OSError` if another server does."""

    async def start(self) -> None:
        """Begins to answer."""

    async def stop(self, grace_s: float) -> None:
        """Answers accepted calls for at most `grace_s` seconds, then ends."""


async def grpc_transport(
    choice: str,
    methods: Iterable[Method],
    max_message_bytes: int,
    budget: MemoryBudget,
    pressure: MemoryPressure,
    *,
    peers: PeerLimits,
    guard: Guard | None = None,
    reflection: bool = True,
    elsewhere: Callable[[], bool],
) -> GrpcTransport:
    """Returns the transport for `--grpc-transport`. `elsewhere`: see `CoreTransport`.

    Raises `OSError` if core was asked for and does not work.
    """
    if choice == "aio":
        return GrpcioTransport(methods, max_message_bytes, peers, guard=guard, reflection=reflection)
    reason = _untested() if choice == "auto" else None
    reason = reason or await _problem()
    if reason is None:
        _log.info("gRPC transport: core (grpcio %s)", grpc.__version__)
        module = importlib.import_module("cnnserve.transports.core.server")
        transport: GrpcTransport = module.CoreTransport(
            methods,
            max_message_bytes,
            budget,
            pressure,
            peers,
            guard=guard,
            reflection=reflection,
            elsewhere=elsewhere,
        )
        return transport
    if choice == "core":
        raise OSError(f"grpc_transport is core, which does not work here: {reason}; set it to auto or aio")
    _log.warning("gRPC transport: aio, which costs more CPU a call; core is not used: %s", reason)
    return GrpcioTransport(methods, max_message_bytes, peers, guard=guard, reflection=reflection)


async def _problem() -> str | None:
    try:
        # On a thread, because models begin to load on the event loop.
        probe = await asyncio.to_thread(importlib.import_module, "cnnserve.transports.core.probe")
    except ImportError as error:
        return f"grpcio {grpc.__version__} lacks a part of it: {error}"
    problem: str | None = await probe.problem()
    return None if problem is None else f"grpcio {grpc.__version__} failed the probe: {problem}"


def _untested() -> str | None:
    """Returns why the installed grpcio is none that the core transport was tested with, or None."""
    match = re.match(r"(\d+)\.(\d+)", grpc.__version__)
    version = (int(match[1]), int(match[2])) if match else (0, 0)
    if version in _TESTED:
        return None
    known = ", ".join(f"{major}.{minor}" for major, minor in _TESTED)
    return f"grpcio {grpc.__version__} was not tested with it, only {known} were"
