"""One version from its files to READY, or to UNAVAILABLE with a reason.

What blocks runs on a thread that holds nothing up; a few versions open at once, the others wait their turn.
"""

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Protocol

from cnnserve.errors import ModelLoadFailed, ServingError
from cnnserve.model import loader
from cnnserve.model.loader import OpenVersion
from cnnserve.model.version import Model
from cnnserve.model_config import pbtxt
from cnnserve.process.threads import on_thread
from cnnserve.registry.lifecycle import State, VersionEntry
from cnnserve.repository.folders import ModelFolder
from cnnserve.repository.manifest import MANIFEST_FILE
from cnnserve.runtime.workers import OnStage

_log = logging.getLogger(__name__)


class Open(Protocol):
    """`loader.open_version` with the server's settings. Blocks, raises `ModelLoadFailed`."""

    def __call__(self, folder: ModelFolder, version: int, *, on_stage: OnStage) -> OpenVersion:
        """Loads and proves one version; tells `on_stage`, on its own thread, what it does."""


@dataclass(frozen=True)
class _Failure:
    reason: str


class VersionOpener:
    """Opens versions, at most `at_once` at a time. `require_manifest`: a version without one fails."""

    def __init__(
        self, open_version: Open, decoders: Executor, *, at_once: int = 2, require_manifest: bool = False
    ) -> None:
        self._open_version = open_version
        self._decoders = decoders
        self._slots = asyncio.Semaphore(at_once)
        self._require_manifest = require_manifest
        self._running: set[asyncio.Future[OpenVersion | _Failure]] = set()
        self._stopped = False

    async def open(self, folder: ModelFolder, entry: VersionEntry, changed: Callable[[], None]) -> None:
        """Takes a LOADING entry to READY or UNAVAILABLE and raises nothing. `changed` hears what happens before."""
        async with self._slots:
            started = time.monotonic()
            try:
                outcome = await self._on_thread(folder, entry, changed)
                if isinstance(outcome, _Failure):
                    entry.move(State.UNAVAILABLE, outcome.reason)
                else:
                    entry.move(State.READY, model=loader.start(outcome, self._decoders))
            except Exception:
                _log.exception("model %s version %d", folder.name, entry.version)
                entry.move(State.UNAVAILABLE, _INTERNAL)
            entry.load_s = time.monotonic() - started
        if entry.model is None:
            _log.error("model %s version %d did not load: %s", folder.name, entry.version, entry.reason)
        else:
            _log.info("%s", _ready_line(entry.model, entry.load_s))

    def stop(self) -> None:
        """Gives up everything that is opening, at once; its threads go on, and what they make is dropped."""
        self._stopped = True
        for future in self._running:
            if not future.done():
                future.set_result(_STOPPED)

    async def _on_thread(
        self, folder: ModelFolder, entry: VersionEntry, changed: Callable[[], None]
    ) -> OpenVersion | _Failure:
        if self._stopped:
            return _STOPPED
        loop = asyncio.get_running_loop()

        def on_loop(text: str) -> None:
            entry.stage(text)
            changed()

        def on_stage(text: str) -> None:
            # A loop that is closed has nobody left to tell.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(on_loop, text)

        name = f"load-{folder.name}-{entry.version}"
        future = on_thread(functools.partial(self._attempt, folder, entry.version, on_stage), name)
        self._running.add(future)
        try:
            return await future
        finally:
            self._running.discard(future)

    def _attempt(self, folder: ModelFolder, version: int, on_stage: OnStage) -> OpenVersion | _Failure:
        # A value, not an exception: the traceback would hold the failed load's session in a cycle with the future.
        try:
            if self._require_manifest and not (folder.versions[version] / MANIFEST_FILE).is_file():
                raise ModelLoadFailed(f"it has no {MANIFEST_FILE}, which --require-manifest demands")
            return self._open_version(folder, version, on_stage=on_stage)
        except ServingError as error:
            return _Failure(pbtxt.told(folder, str(error)))
        except Exception:
            _log.exception("model %s version %d failed to load", folder.name, version)
            return _Failure(_INTERNAL)


_INTERNAL = "internal error while loading; the server's log has the cause"
_STOPPED = _Failure("the server is shutting down")


def _ready_line(model: Model, seconds: float) -> str:
    info = model.info
    placement = ", ".join(f"{count} nodes on {provider}" for provider, count in info.placement.items())
    proof = info.self_test or info.probe
    return f"model {info.name} version {info.version} READY in {seconds:.2f} s; {placement}; {proof}"
