"""The composition root: builds the server from its parts, starts them in order, and stops them."""

import asyncio
import contextlib
import gc
import importlib
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Coroutine
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

import cnnserve
from cnnserve import extras
from cnnserve.access import exposure
from cnnserve.access.control import AccessControl
from cnnserve.access.lists import AccessError
from cnnserve.assembly.loading import (
    Loading,
    access_control,
    cpu_threads,
    followed_keys,
    layout_cache,
    load_first,
    models_of,
    prepare,
)
from cnnserve.config.settings import ConfigError, ServerConfig
from cnnserve.errors import ServingError
from cnnserve.process import heap, open_files, signals
from cnnserve.process.threads import on_thread
from cnnserve.registry.automatic_layouts import AutomaticLayouts
from cnnserve.registry.control import POLL
from cnnserve.registry.health import Health
from cnnserve.registry.poller import Poller, watch_labels
from cnnserve.registry.registry import Registry
from cnnserve.repository import layout

# The ports are imported while the first models load: see `_open_front`.
if TYPE_CHECKING:
    from cnnserve.transports.front import Front, Ports

_log = logging.getLogger(__name__)

_SWITCH_S = 0.0002
# The server no longer waits for runs this many seconds after the grace period.
_CLOSE_S = 1.0
# People read the log of a container that has lost requests.
_KILLED = "; the container must not be killed before: docker stop --time 30, terminationGracePeriodSeconds: 30"
# How often a draining server looks which requests in its queues it can still answer in time, in seconds.
_SHED_S = 0.5


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
    on_bound: "Callable[[Ports], None] | None" = None,
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
    loading = prepare(config)
    registry = loading.registry
    first = asyncio.create_task(load_first(config, registry))
    try:
        front = await _open_front(config, loading, access, files)
    except BaseException:
        registry.stop_loading()
        first.cancel()
        raise
    threads = cpu_threads(config)
    _announce(config, front.ports, threads)
    if on_bound is not None:
        on_bound(front.ports)
    kept = (
        _load(config, registry, front.health, look, first),
        watch_labels(registry),
        AutomaticLayouts(registry, layout_cache(config, threads)).run(),
        access.follow(reread, followed_keys(config, registry)),
    )
    keeping = [asyncio.create_task(work) for work in kept]
    http_task = asyncio.create_task(front.serve_http())
    probes = contextlib.AsyncExitStack()
    try:
        await probes.enter_async_context(front.probed())
        await _until(shutdown, http_task, keeping[0])
    finally:
        deadline = asyncio.get_running_loop().time() + config.drain_grace_s
        # First, because a call that waits for a load would delay the drain.
        registry.stop_loading()
        for task in keeping:
            task.cancel()
        await asyncio.gather(*keeping, return_exceptions=True)
        shedding = asyncio.create_task(_shed(registry, deadline))
        _log.info(
            "draining: requests in flight have at most %g s%s", config.drain_grace_s, _KILLED if extras.image() else ""
        )
        await front.drain()
        shedding.cancel()
        front.http_end.set()
        await _close(registry, deadline + _CLOSE_S)
        await asyncio.gather(_end_http(http_task, front.http_socket), front.parts.observer.close())
        await probes.aclose()
        loading.decoders.close()
        _log.info("stopped")


async def _open_front(config: ServerConfig, loading: Loading, access: AccessControl, files: int) -> "Front":
    # On a thread, because the models begin to load on the event loop: they need nothing of what is imported here.
    module = await asyncio.to_thread(_import_front)
    front: Front = await module.open_front(config, loading, access, files)
    return front


def _import_front() -> ModuleType:
    # As `cnnserve.cli.serve` imports this module.
    gc.disable()
    try:
        return importlib.import_module("cnnserve.transports.front")
    finally:
        gc.freeze()
        gc.enable()


def _announce(config: ServerConfig, ports: "Ports", threads: int) -> None:
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


async def _check_repository(config: ServerConfig) -> None:
    """Raises `OSError` if there is nothing to serve, and nothing may come later."""
    with contextlib.suppress(ServingError):  # which `load_first` has logged
        if problem := await on_thread(partial(layout.problem, models_of(config))):
            if config.model_control_mode == "none":
                raise OSError(problem)
            _log.warning("%s", problem)


async def _load(
    config: ServerConfig,
    registry: Registry,
    health: Health,
    look: asyncio.Event | None,
    loading: "asyncio.Task[None]",
) -> None:
    """Waits for the models to be served at start; with mode poll, then follows the files of the model repository."""
    await loading
    await _check_repository(config)
    health.started()
    ready = [
        f"{model.name} ({', '.join(str(v.version) for v in model.ready)})" for model in registry.models if model.ready
    ]
    _log.info("%s; models: %s", "ready" if health.is_ready else "NOT ready", ", ".join(ready) or "none")
    if config.model_control_mode == POLL:
        poller = Poller(registry, models_of(config), config.poll_interval_s, config.model_config_name)
        await poller.run(look)


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


async def _end_http(http: "asyncio.Task[None]", bound: socket.socket) -> None:
    """Waits for the end of HTTP, and closes its port also if it never served."""
    await asyncio.wait((http,), timeout=_CLOSE_S)
    http.cancel()
    bound.close()


async def _shed(registry: Registry, deadline: float) -> None:
    """Tells requests early that they will not be answered before `deadline`, so that their clients go elsewhere."""
    loop = asyncio.get_running_loop()
    while (left_s := deadline - loop.time()) > 0:
        registry.refuse_late(left_s)
        await asyncio.sleep(_SHED_S)
