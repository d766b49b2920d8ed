"""The composition root: builds the server from its parts, starts them in order, and stops them."""

import asyncio
import contextlib
import importlib
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import cnnserve
from cnnserve.access import exposure
from cnnserve.access.accounts import ClientLimits
from cnnserve.access.control import AccessControl
from cnnserve.access.following import Followed
from cnnserve.access.lists import AccessError
from cnnserve.access.tls import Tls, TlsFiles
from cnnserve.api.classifier import ClassifierService
from cnnserve.api.health import HealthService
from cnnserve.api.inspection import InspectionService
from cnnserve.api.methods import Method
from cnnserve.api.model_control import RepositoryService
from cnnserve.api.model_infer import Inference
from cnnserve.api.observing import Observer
from cnnserve.api.open_inference import InferenceService
from cnnserve.api.regions import SharedMemory
from cnnserve.api.shared_memory import SharedMemoryService
from cnnserve.config.settings import COMPRESSION_LEVELS, ConfigError, ServerConfig
from cnnserve.errors import ServingError
from cnnserve.images.decoding_pool import DecodingPool
from cnnserve.model import loader
from cnnserve.model_config.execution import Device
from cnnserve.process import heap, memory_limit, open_files, signals
from cnnserve.process.admission import MemoryBudget
from cnnserve.process.cpu import cpu_budget, decoding_threads
from cnnserve.process.pressure import MemoryPressure, resident_bytes
from cnnserve.process.threads import on_thread
from cnnserve.registry import snapshot
from cnnserve.registry.control import EXPLICIT, POLL, ModelControl
from cnnserve.registry.health import Health
from cnnserve.registry.opening import LoadLimits, VersionOpener
from cnnserve.registry.poller import Poller, watch_labels
from cnnserve.registry.registry import Registry
from cnnserve.repository import layout
from cnnserve.repository.folders import Models, NamedModels
from cnnserve.repository.signature import Trust
from cnnserve.transports import addresses
from cnnserve.transports.calls import PeerLimits
from cnnserve.transports.choice import GrpcTransport, grpc_transport
from cnnserve.transports.health_ports import health_ports
from cnnserve.transports.http.connections import ConnectionLimits
from cnnserve.transports.http.in_flight import InFlight, Limits
from cnnserve.transports.http.settings import HttpSettings

_log = logging.getLogger(__name__)

# Limits of the number of loads at the same time. Several, so that a model that builds for minutes does not delay the
# others; few, because each load needs the memory of its model twice.
_LOADS_AT_LEAST = 2
_LOADS_AT_MOST = 4
_SWITCH_S = 0.0002
# The server no longer waits for runs this many seconds after the grace period.
_CLOSE_S = 1.0
# How often a draining server looks which requests in its queues it can still answer in time, in seconds.
_SHED_S = 0.5


@dataclass(frozen=True)
class Ports:
    """The ports on which the server listens."""

    grpc: int
    http: int


def run(config: ServerConfig, work: Callable[[ServerConfig], Coroutine[Any, Any, int]] | None = None) -> int:
    """Runs `work` on the event loop and returns the exit status.

    By default it serves until SIGTERM or SIGINT, and drains. The status is 0, or 1 if it cannot listen on a port, or 2
    if the trusted keys cannot be used.
    """
    # If the event loop is busy when a run ends, the instance's thread waits for the GIL: by default up to 5 ms, which
    # is a whole run of a small model.
    sys.setswitchinterval(_SWITCH_S)
    heap.limit_arenas(max(2, cpu_threads(config)))
    try:
        code = _run_loop((work or _run)(config))
    except ConfigError as error:
        _log.error("%s", error)
        code = 2
    logging.shutdown()
    if any(thread.daemon for thread in threading.enumerate()):
        # A load, or a run longer than the grace period, is still in native code, which would abort the process if the
        # interpreter ended normally. All other work has ended, so nothing is lost.
        os._exit(code)
    return code


def _run_loop(work: Coroutine[Any, Any, int]) -> int:
    """Runs `work` on uvloop, which Windows does not have, or else on asyncio's own event loop."""
    run: Callable[[Coroutine[Any, Any, int]], int] = asyncio.run
    with contextlib.suppress(ModuleNotFoundError):
        run = importlib.import_module("uvloop").run
    return run(work)


async def _run(config: ServerConfig) -> int:
    shutdown, look, reread = asyncio.Event(), asyncio.Event(), asyncio.Event()
    signals.watch(shutdown.set, partial(_look, config, look, reread))
    try:
        await serve(config, shutdown, look=look, reread=reread)
    except (OSError, AccessError) as error:
        _log.error("%s", error)
        return 1
    return 0


def _look(config: ServerConfig, look: asyncio.Event, reread: asyncio.Event) -> None:
    reread.set()
    if config.model_control_mode == POLL:
        look.set()
    elif not any(
        (config.tokens_file, config.certificate_scopes_file, config.tls_certificate, config.trusted_keys),
    ):
        _log.info("SIGHUP: nothing to do, because model_control_mode is %s, not poll", config.model_control_mode)


async def serve(
    config: ServerConfig,
    shutdown: asyncio.Event,
    on_bound: Callable[[Ports], None] | None = None,
    look: asyncio.Event | None = None,
    reread: asyncio.Event | None = None,
) -> None:
    """Runs a server until `shutdown` is set. Calls `on_bound` with its ports.

    Raises `OSError` if a port is in use, `AccessError` if a file of access control cannot be used, and `ConfigError` if
    the trusted keys cannot be used. The server looks for changed models each time `look` is set (in mode poll), and
    reads the files of access control when `reread` is set.
    """
    files = open_files.raise_limit()
    # First, because the server must not start with a file that says who may do what and cannot be read.
    access = access_control(config)
    threads = cpu_threads(config)
    decoders = DecodingPool(config.decode_threads or decoding_threads(threads))
    budget = memory_budget(config)
    registry = make_registry(config, threads, decoders, budget)
    control = ModelControl(
        registry, models_of(config), mode=config.model_control_mode, allowed=config.allow_model_control
    )
    health = Health(registry, strict=config.strict_readiness, may_be_empty=config.model_control_mode == EXPLICIT)
    max_message_bytes = _largest_message(config, budget)
    observer = _observer(config)
    classifier = ClassifierService(registry, budget, max_message_bytes, observer)
    repository, regions = RepositoryService(control), SharedMemory(config.shared_memory_prefix)
    shared_memory, inspection = SharedMemoryService(regions), InspectionService(registry)
    inference = InferenceService(
        registry,
        Inference(budget, regions, max_message_bytes),
        lambda: health.is_ready,
        (*repository.extensions, *inspection.extensions, *shared_memory.extensions),
        triton_status=config.triton_status_codes,
        observer=observer,
    )
    methods = observer.methods(
        method
        for service in (inference, inspection, shared_memory, classifier, repository, HealthService(health))
        for method in service.methods()
    )
    pressure = MemoryPressure(budget)
    registry.on_change(pressure.learn)
    registry.on_change(partial(_follow_memory, config.max_pending_mib, budget, pressure))
    http_end, in_flight = asyncio.Event(), InFlight()
    grpc = await grpc_transport(
        config.grpc_transport,
        methods,
        max_message_bytes,
        budget,
        pressure,
        peers=_peer_limits(config, files),
        guard=access.guard,
        reflection=not config.no_reflection,
        elsewhere=lambda: in_flight.count > 0,
    )
    grpc_port = _bind(grpc, config, access.tls)
    http_socket = addresses.listen(config.host, config.http_port, "http_port")
    ports = Ports(grpc_port, http_socket.getsockname()[1])
    await grpc.start()
    _announce(config, ports, threads)
    if on_bound is not None:
        on_bound(ports)
    kept = (
        _load(config, registry, health, look),
        watch_labels(registry),
        access.follow(reread, _keys(config, registry)),
    )
    keeping = [asyncio.create_task(work) for work in kept]
    http_task = asyncio.create_task(
        _serve_http(
            methods,
            Limits(budget, max_message_bytes),
            in_flight,
            lambda: snapshot.snapshot(registry, budget, access.certificate_end),
            access,
            settings=_http_settings(config),
            connections=_connection_limits(config, files),
            listening=http_socket,
            end=http_end,
        )
    )
    probes = contextlib.AsyncExitStack()
    try:
        await probes.enter_async_context(
            health_ports(methods, config.host, config.health_grpc_port, config.health_http_port)
        )
        await _until(shutdown, http_task, keeping[0])
    finally:
        deadline = asyncio.get_running_loop().time() + config.drain_grace_s
        # First, because a call that waits for a load would delay the drain.
        registry.stop_loading()
        for task in keeping:
            task.cancel()
        await asyncio.gather(*keeping, return_exceptions=True)
        shedding = asyncio.create_task(_shed(registry, deadline))
        await _drain(config.drain_grace_s, health, (classifier, inference), grpc, in_flight)
        shedding.cancel()
        http_end.set()
        await _close(registry, deadline + _CLOSE_S)
        await asyncio.gather(_end_http(http_task, http_socket), observer.close())
        await probes.aclose()
        decoders.close()
        _log.info("stopped")


def _announce(config: ServerConfig, ports: Ports, threads: int) -> None:
    _log.info(
        "cnnserve %s listening on %s: gRPC port %d, HTTP port %d%s; %d CPU threads per model",
        cnnserve.__version__,
        config.host,
        ports.grpc,
        ports.http,
        ", both with TLS" if config.tls_certificate else "",
        threads,
    )
    has_tls, knows_clients = config.tls_certificate is not None, bool(config.tokens_file or config.tls_client_ca)
    line = exposure.warning(config.host, has_tls=has_tls, knows_clients=knows_clients)
    if line and not config.insecure:
        _log.warning("%s", line)


def cpu_threads(config: ServerConfig) -> int:
    """Returns the number of CPU threads for the runs of one model."""
    return config.cpu_threads or cpu_budget()


def _peer_limits(config: ServerConfig, files: int) -> PeerLimits:
    return PeerLimits(
        config.grpc_min_ping_interval_s,
        config.max_metadata_kib * 2**10,
        compression_level=COMPRESSION_LEVELS.index(config.grpc_response_compression),
        max_connections=open_files.connections(files, config.max_connections),
        max_streams=config.max_streams_per_connection,
        max_age_s=config.max_connection_age_s,
        age_grace_s=config.max_connection_age_grace_s,
    )


def _connection_limits(config: ServerConfig, files: int) -> ConnectionLimits:
    most = open_files.connections(files, config.max_connections)
    return ConnectionLimits(most, config.max_connections_per_address, config.max_connection_age_s)


def access_control(config: ServerConfig) -> AccessControl:
    """Reads the files of access control. Raises `AccessError` if one of them cannot be used."""
    files = None
    if config.tls_certificate and config.tls_key:
        files = TlsFiles(config.tls_certificate, config.tls_key, config.tls_client_ca)
    limits = ClientLimits(config.client_requests_per_second, config.client_images_in_flight)
    return AccessControl(
        config.tokens_file, config.certificate_scopes_file, config.trusted_proxy, tls_files=files, limits=limits
    )


def _bind(grpc: GrpcTransport, config: ServerConfig, tls: Tls | None) -> int:
    addresses.check_free(config.host, config.grpc_port, "grpc_port")
    if config.grpc_socket:
        grpc.bind_unix(Path(config.grpc_socket).absolute())
        _log.info("gRPC also on the Unix socket %s", config.grpc_socket)
    return grpc.bind(config.host, config.grpc_port, tls)


def _http_settings(config: ServerConfig) -> HttpSettings:
    """A client that may change models must not be a page that happens to run in the browser of somebody near."""
    names = (config.host, *config.allowed_host)
    return HttpSettings(names if config.allow_model_control else None, config.cors_origin)


def _observer(config: ServerConfig) -> Observer:
    """Returns what logs and traces requests. Raises `ConfigError` if OpenTelemetry is wanted and not installed."""
    share = config.access_log_sample if config.access_log else 0.0
    if not config.tracing:
        return Observer(share)
    with _needs("tracing", "otel"):
        # By name: a server that does not trace must not pay for OpenTelemetry.
        return Observer(share, tracing=importlib.import_module("cnnserve.api.tracing").start())


@contextlib.contextmanager
def _needs(setting: str, extra: str) -> Iterator[None]:
    """Raises `ConfigError` if a package is missing that only the `extra` of a setting installs."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(
            f'{setting} needs {error.name}, which is not installed: pip install "cnnserve[{extra}]"'
        ) from error


def memory_budget(config: ServerConfig) -> MemoryBudget:
    """Returns the memory that requests may hold, and logs it with its source."""
    found = memory_limit.budget(config.max_pending_mib, memory_limit.memory_limit(), resident_bytes())
    if found.warning:
        _log.warning("%s", found.warning)
    _log.info("requests may hold %d MiB of memory: %s", found.mib, found.reason)
    return MemoryBudget(found.mib * 2**20)


def _largest_message(config: ServerConfig, budget: MemoryBudget) -> int:
    """Returns the message limit in bytes: a message is in memory twice, and two of them must fit into the budget."""
    wanted = config.max_message_mib * 2**20
    if config.max_pending_mib or 2 * wanted <= budget.limit_bytes:
        return wanted
    smaller = budget.limit_bytes // 2
    _log.warning(
        "messages may have %d MiB instead of %d (max_message_mib): two of them must fit into the memory for requests",
        smaller >> 20,
        config.max_message_mib,
    )
    return smaller


def _follow_memory(asked_mib: int, budget: MemoryBudget, pressure: MemoryPressure) -> None:
    """What models take, requests may not hold; called after each load and unload."""
    limit = memory_limit.memory_limit()
    if limit is not None:
        budget.limit_bytes = memory_limit.budget(asked_mib, limit, pressure.idle_bytes).mib * 2**20


def trusted_keys(config: ServerConfig) -> Trust | None:
    """Returns the keys whose signatures count, if there are any. Raises `ConfigError`."""
    if config.trusted_keys is None:
        return None
    with _needs("trusted_keys", "trust"):
        # By name: without trusted keys, the start must not pay for cryptography.
        trusted = importlib.import_module("cnnserve.trust.keys").read(config.trusted_keys)
    for warning in trusted.warnings:
        _log.warning("trusted keys: %s", warning)
    _log.info("only versions with a signature of a trusted key are served; trusted are %s", trusted)
    return cast("Trust", trusted)


def _keys(config: ServerConfig, registry: Registry) -> list[Followed]:
    """Returns the trusted keys, which are read again as the files of access control are."""
    if config.trusted_keys is None or registry.trust is None:
        return []
    return [Followed("trusted keys", (config.trusted_keys,), registry.trust.reload)]


def models_of(config: ServerConfig) -> Models:
    """Returns where the models are: a model repository, or single models."""
    if config.model:
        return NamedModels(config.models)
    # What is at an address was pulled before.
    assert isinstance(config.repository, Path)
    return config.repository


def make_registry(config: ServerConfig, threads: int, decoders: DecodingPool, budget: MemoryBudget) -> Registry:
    """Returns the registry of the model repository. Nothing is loaded yet. Raises `ConfigError`, see `trusted_keys`."""
    trust = trusted_keys(config)
    device: Device = "cuda" if config.device == "cuda" else "cpu"
    open_version = partial(
        loader.open_version,
        cpu_threads=threads,
        device=device,
        engine_cache=config.engine_cache,
        budget=budget,
        load_timeout_s=config.load_timeout_s,
        build_timeout_s=config.build_timeout_s,
        counts_drift=not config.no_drift_metrics,
    )
    at_once = min(max(threads, _LOADS_AT_LEAST), _LOADS_AT_MOST)
    opener = VersionOpener(
        open_version,
        decoders,
        at_once=at_once,
        require_manifest=config.require_manifest or trust is not None,
        limits=LoadLimits(config.load_timeout_s, config.build_timeout_s),
    )
    return Registry(models_of(config), opener, config.model_config_name, trust)


async def load_first(config: ServerConfig, registry: Registry) -> None:
    """Loads the models to be served at start. What fails is logged."""
    explicit = config.model_control_mode == EXPLICIT
    try:
        await registry.load_all(config.load_model if explicit and "*" not in config.load_model else None)
    except ServingError as error:
        _log.error("%s", error)


async def _check_repository(config: ServerConfig) -> None:
    """Raises `OSError` if there is nothing to serve, and nothing may come later."""
    with contextlib.suppress(ServingError):  # which `load_first` has logged
        if problem := await on_thread(partial(layout.problem, models_of(config))):
            if config.model_control_mode == "none":
                raise OSError(problem)
            _log.warning("%s", problem)


async def _load(config: ServerConfig, registry: Registry, health: Health, look: asyncio.Event | None) -> None:
    """Loads the models to be served at start; with mode poll, then follows the files of the model repository."""
    await load_first(config, registry)
    await _check_repository(config)
    health.started()
    ready = [
        f"{model.name} ({', '.join(str(v.version) for v in model.ready)})" for model in registry.models if model.ready
    ]
    _log.info("%s; models: %s", "ready" if health.is_ready else "NOT ready", ", ".join(ready) or "none")
    if config.model_control_mode == POLL:
        poller = Poller(registry, models_of(config), config.poll_interval_s, config.model_config_name)
        await poller.run(look)


async def _serve_http(
    methods: Sequence[Method],
    limits: Limits,
    in_flight: InFlight,
    snapshot: Callable[[], snapshot.Snapshot],
    access: AccessControl,
    *,
    settings: HttpSettings,
    connections: ConnectionLimits,
    listening: socket.socket,
    end: asyncio.Event,
) -> None:
    """Serves HTTP until `end` is set."""
    # Imported on a thread while models load: a start that waited for this import took 5 % longer.
    http = await asyncio.to_thread(importlib.import_module, "cnnserve.transports.http.server")
    application = http.application(methods, limits, in_flight, snapshot, settings, guard=access.guard)
    server = http.HttpServer(application, listening, limits.budget, connections, access.tls)
    serving, ending = asyncio.create_task(server.serve()), asyncio.create_task(end.wait())
    await asyncio.wait((serving, ending), return_when=asyncio.FIRST_COMPLETED)
    ending.cancel()
    server.stop()
    await serving


async def _until(shutdown: asyncio.Event, http: "asyncio.Task[None]", loading: "asyncio.Task[None]") -> None:
    """Waits until `shutdown` is set. Raises `OSError` if HTTP ends before, or if there is nothing to serve."""
    waiting = asyncio.create_task(shutdown.wait())
    await asyncio.wait((waiting, http, loading), return_when=asyncio.FIRST_COMPLETED)
    if loading.done() and (error := loading.exception()):
        waiting.cancel()
        raise error
    await asyncio.wait((waiting, http), return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if http.done() and not shutdown.is_set():
        error = http.exception()
        raise OSError(f"the HTTP port has failed, so the server stops: {error!r}") from error


async def _close(registry: Registry, deadline: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout_at(deadline):
            await registry.close()


async def _end_http(http: "asyncio.Task[None]", listening: socket.socket) -> None:
    """Waits for the end of HTTP, and closes its port also if it never served."""
    await asyncio.wait((http,), timeout=_CLOSE_S)
    http.cancel()
    listening.close()


async def _shed(registry: Registry, deadline: float) -> None:
    """Tells requests early that they will not be answered before `deadline`, so that their clients go elsewhere."""
    loop = asyncio.get_running_loop()
    while (left_s := deadline - loop.time()) > 0:
        registry.refuse_late(left_s)
        await asyncio.sleep(_SHED_S)


async def _drain(
    grace_s: float,
    health: Health,
    streaming: Sequence[ClassifierService | InferenceService],
    grpc: GrpcTransport,
    in_flight: InFlight,
) -> None:
    """Reports NOT_SERVING first, so that clients know it; then ends the streams; then answers the calls in flight."""
    _log.info("draining: requests in flight have at most %g s", grace_s)
    health.drain()
    health.close()
    for service in streaming:
        service.drain()
    await asyncio.gather(grpc.stop(grace_s), in_flight.drain(grace_s))
