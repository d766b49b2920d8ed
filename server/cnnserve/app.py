"""The composition root: what is wired to what, in which order it starts, and how it ends."""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import uvloop

import cnnserve
from cnnserve.config import ServerConfig
from cnnserve.cpu import cpu_budget
from cnnserve.health import Health
from cnnserve.registry import Registry
from cnnserve.rest.http import HttpServer, application
from cnnserve.rpc.classifier import ClassifierService
from cnnserve.rpc.grpcio_transport import GrpcioTransport
from cnnserve.rpc.health import HealthService
from cnnserve.rpc.inference import InferenceService

_log = logging.getLogger(__name__)

# A run that outlives the grace is left behind after this.
_CLOSE_S = 1.0


@dataclass(frozen=True)
class Ports:
    """What was really bound."""

    grpc: int
    http: int


def run(config: ServerConfig) -> int:
    """Serves until SIGTERM or SIGINT, drains, and returns the exit code."""
    return uvloop.run(_run(config))


async def _run(config: ServerConfig) -> int:
    shutdown = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, shutdown.set)
    try:
        await serve(config, shutdown)
    except OSError as error:
        _log.error("%s", error)
        return 1
    return 0


async def serve(config: ServerConfig, shutdown: asyncio.Event, on_bound: Callable[[Ports], None] | None = None) -> None:
    """Runs a server until `shutdown` is set. `on_bound` hears the ports. Raises `OSError` where one is taken."""
    threads = config.cpu_threads or cpu_budget()
    decoders = ThreadPoolExecutor(config.decode_threads or threads, "decode")
    registry = Registry(config.model_repository, threads, decoders)
    health = Health(registry, strict=config.strict_readiness)
    max_message_bytes = config.max_message_mib * 2**20
    classifier = ClassifierService(registry, max_message_bytes)
    inference = InferenceService(registry, lambda: health.is_ready)
    methods = [*inference.methods(), *classifier.methods(), *HealthService(health).methods()]
    grpc = GrpcioTransport(methods, max_message_bytes)
    http = HttpServer(application(inference, health))

    ports = Ports(grpc.bind(config.host, config.grpc_port), http.bind(config.host, config.http_port))
    await grpc.start()
    # Signals end it through `http.stop`; nothing else awaits it before the end.
    http_task = asyncio.create_task(http.serve())
    _log.info(
        "cnnserve %s listening on %s: gRPC port %d, HTTP port %d; %d CPU threads a model",
        cnnserve.__version__,
        config.host,
        ports.grpc,
        ports.http,
        threads,
    )
    if on_bound is not None:
        on_bound(ports)
    loading = asyncio.create_task(_load(registry, health))
    try:
        await shutdown.wait()
    finally:
        deadline = asyncio.get_running_loop().time() + config.drain_grace_s
        await _drain(config.drain_grace_s, health, classifier, grpc)
        loading.cancel()
        await asyncio.gather(loading, return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline + _CLOSE_S):
                await registry.close()
        http.stop()
        await http_task
        decoders.shutdown(wait=False, cancel_futures=True)
        _log.info("stopped")


async def _load(registry: Registry, health: Health) -> None:
    await registry.load_all()
    health.started()
    ready = [
        f"{model.name} ({', '.join(str(v.version) for v in model.ready)})" for model in registry.models if model.ready
    ]
    _log.info("%s; models: %s", "ready" if health.is_ready else "NOT ready", ", ".join(ready) or "none")


async def _drain(grace_s: float, health: Health, classifier: ClassifierService, grpc: GrpcioTransport) -> None:
    """NOT_SERVING first, so that clients hear it; then the streams end; then the calls in flight are answered."""
    _log.info("draining: at most %g s for the requests in flight", grace_s)
    health.drain()
    health.close()
    classifier.drain()
    await grpc.stop(grace_s)
