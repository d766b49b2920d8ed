"""Opens a version: from its files to READY, or to UNAVAILABLE with a reason.

Blocking work runs on threads that do not delay the exit. A few versions open at the same time, the others wait.
"""

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from cnnserve.config.settings import BUILD_TIMEOUT_S, LOAD_TIMEOUT_S
from cnnserve.errors import ModelLoadFailed, ServingError
from cnnserve.images.decoding_pool import DecodingPool
from cnnserve.model import loader
from cnnserve.model.loader import OpenVersion
from cnnserve.model.passing import may_pass
from cnnserve.model.version import Model
from cnnserve.model_config import pbtxt
from cnnserve.model_config.parameters import ALLOW_UNVERIFIED
from cnnserve.process.redaction import redacted
from cnnserve.process.threads import on_thread
from cnnserve.registry.lifecycle import State, VersionEntry
from cnnserve.repository.folders import Fingerprint, ModelFolder
from cnnserve.repository.manifest import MANIFEST_FILE
from cnnserve.repository.version_files import VersionFiles
from cnnserve.runtime.workers import OnStage

_log = logging.getLogger(__name__)


class Open(Protocol):
    """The signature of `loader.open_version` with the server's settings. Blocks. Raises `ModelLoadFailed`."""

    def __call__(self, files: VersionFiles, *, on_stage: OnStage) -> OpenVersion:
        """Loads and self-tests one version. Calls `on_stage`, on the calling thread, with what it does."""


@dataclass(frozen=True)
class LoadLimits:
    """How long a load may take (s): in all, or from the moment when it begins to build TensorRT's engines."""

    load_s: float = LOAD_TIMEOUT_S
    build_s: float = BUILD_TIMEOUT_S


@dataclass(frozen=True)
class _Failure:
    reason: str
    may_pass: bool = False


@dataclass(frozen=True)
class _Attempt:
    """The result of a load, and the fingerprint of the files that it read; None if there is none."""

    result: OpenVersion | _Failure
    fingerprint: Fingerprint | None = None


class VersionOpener:
    """Opens at most `at_once` versions at a time. `require_manifest`: a version without a manifest fails.

    A load that takes longer than `limits` is given up: its thread goes on, but no other load waits for it.
    """

    def __init__(
        self,
        open_version: Open,
        decoders: DecodingPool,
        *,
        at_once: int = 2,
        require_manifest: bool = False,
        limits: LoadLimits | None = None,
    ) -> None:
        self._limits = limits or LoadLimits()
        self._open_version = open_version
        self._decoders = decoders
        self._slots = asyncio.Semaphore(at_once)
        self._require_manifest = require_manifest
        self._running: set[asyncio.Future[_Attempt]] = set()
        self._stopped = False

    async def open(self, folder: ModelFolder, entry: VersionEntry, changed: Callable[[], None]) -> None:
        """Moves a LOADING entry to READY or UNAVAILABLE. Calls `changed` at each stage before that. Raises nothing.

        The fingerprint of the entry becomes that of the files that were read.
        """
        async with self._slots:
            started = time.monotonic()
            try:
                attempt = await self._on_thread(folder, entry, changed)
                outcome = attempt.result
                entry.fingerprint = entry.tried = attempt.fingerprint or entry.fingerprint
                if isinstance(outcome, _Failure):
                    entry.move(State.UNAVAILABLE, outcome.reason)
                    entry.may_pass = outcome.may_pass
                else:
                    take_out = functools.partial(_take_out, folder.name, entry, changed)
                    entry.move(State.READY, model=loader.start(outcome, self._decoders, take_out))
            except Exception:
                _log.exception("model %s version %d could not be started", folder.name, entry.version)
                entry.move(State.UNAVAILABLE, _INTERNAL)
            entry.load_s = time.monotonic() - started
        if entry.model is None:
            _log.error("model %s version %d did not load: %s", folder.name, entry.version, entry.reason)
        else:
            for line in _ready_lines(entry.model, entry.load_s):
                _log.info("%s", line)

    def stop(self) -> None:
        """Gives up all loads at once. Their threads continue, and their results are dropped."""
        self._stopped = True
        for future in self._running:
            if not future.done():
                future.set_result(_STOPPED)

    async def _on_thread(self, folder: ModelFolder, entry: VersionEntry, changed: Callable[[], None]) -> _Attempt:
        if self._stopped:
            return _STOPPED
        loop = asyncio.get_running_loop()
        limit = asyncio.timeout(self._limits.load_s)

        def on_loop(text: str) -> None:
            was = entry.state
            entry.stage(text)
            if entry.state is State.BUILDING and was is not State.BUILDING and limit.when() is not None:
                limit.reschedule(loop.time() + self._limits.build_s)
            changed()

        def on_stage(text: str) -> None:
            # If the event loop is closed, nobody waits for the load any more.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(on_loop, text)

        name = f"load-{folder.name}-{entry.version}"
        future = on_thread(functools.partial(self._attempt, folder, entry.version, on_stage), name)
        self._running.add(future)
        try:
            async with limit:
                return await future
        except TimeoutError:
            flag, limit_s = "--load-timeout-s", self._limits.load_s
            if entry.state is State.BUILDING:
                flag, limit_s = "--build-timeout-s", self._limits.build_s
            return _Attempt(
                _Failure(f"the load did not end within {limit_s:g} s ({flag}) and was given up", may_pass=True)
            )
        finally:
            self._running.discard(future)

    def _attempt(self, folder: ModelFolder, version: int, on_stage: OnStage) -> _Attempt:
        try:
            with VersionFiles(folder, version) as files:
                if files.signed is not None:
                    _log.info("model %s version %d is signed by %s", folder.name, version, files.signed.signer)
                result = self._result(files, on_stage)
                return _Attempt(result, files.fingerprint)
        except ModelLoadFailed as error:
            return _Attempt(_Failure(redacted(str(error)), may_pass(error)))

    def _result(self, files: VersionFiles, on_stage: OnStage) -> OpenVersion | _Failure:
        # A failure is returned, not raised: the traceback would keep the session of the failed load in memory, in a
        # cycle with the future.
        try:
            if not files.has(MANIFEST_FILE):
                self._check_unverified(files)
            return self._open_version(files, on_stage=on_stage)
        except ServingError as error:
            if error.__cause__ is not None:
                # As text: a handler that keeps the record would keep the traceback, and with it the session.
                cause = str(error.__cause__)
                _log.error("model %s version %d: cause: %s", files.folder.name, files.version, cause)
            return _Failure(redacted(pbtxt.told(files.folder, str(error))), may_pass(error))
        except Exception as error:
            _log.exception("model %s version %d failed to load", files.folder.name, files.version)
            return _Failure(_INTERNAL, may_pass(error))

    def _check_unverified(self, files: VersionFiles) -> None:
        """Raises `ModelLoadFailed` if no version without a manifest may be served."""
        if self._require_manifest:
            raise ModelLoadFailed(
                f"it has no {MANIFEST_FILE}, which --require-manifest demands; export or import it with cnnserve"
            )
        if files.folder.verified and not pbtxt.allows_unverified(files.folder, files.shared):
            raise ModelLoadFailed(
                f"it has no {MANIFEST_FILE}, but the model has or had a version with one; export or import it with "
                f"cnnserve, or set the parameter {ALLOW_UNVERIFIED} in the model's config file to true"
            )


def _take_out(name: str, entry: VersionEntry, changed: Callable[[], None], reason: str) -> None:
    """Takes a version out of service that must not answer any more. Its requests fail at once."""
    model = entry.model
    if model is None:
        return
    model.give_up(reason)
    # If the version is unloading, its unload ends by itself now.
    if entry.state is State.READY:
        entry.move(State.UNAVAILABLE, f"it was taken out of service: {reason}")
        _log.error("model %s version %d was taken out of service: %s", name, entry.version, reason)
        changed()


_INTERNAL = "internal error while loading; the server's log has the cause"
_STOPPED = _Attempt(_Failure("the server is shutting down"))


def _ready_lines(model: Model, seconds: float) -> tuple[str, str]:
    info = model.info
    placement = ", ".join(f"{count} nodes on {provider}" for provider, count in info.placement.items())
    contract = f"; contract {info.manifest.schema}" if info.manifest else ""
    name = f"model {info.name} version {info.version}"
    return f"{name} READY in {seconds:.2f} s; {placement}{contract}", f"{name}: {info.self_test or info.probe}"
