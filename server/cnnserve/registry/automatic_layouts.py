"""Finds the layouts of models while the server has nothing else to do, and switches to them.

A model serves with the layout of its config meanwhile. Measurements run only while no model has a request; the first
request ends the measurement under way, which is repeated later. The layout that was found goes into the cache, and the
version is loaded again, with it, and replaces itself.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine
from functools import partial
from typing import Any, TypeVar

from cnnserve.errors import ServingError
from cnnserve.model.layout_cache import LayoutCache
from cnnserve.model.layout_search import Axes, Goal, Measurement, OutOfBudget, Search, shapes
from cnnserve.model.layouts import Layouts, largest_batch, opened
from cnnserve.model_config.layout import Layout
from cnnserve.process.threads import on_thread
from cnnserve.registry.lifecycle import State, VersionEntry
from cnnserve.registry.registry import Registry
from cnnserve.repository.folders import ModelFolder

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

# Measurements of one model, and each of them.
_BUDGET_S, _EACH_S = 3.0, 0.2
# How long no request must have come before a measurement begins, and how often that is looked at.
_IDLE_S, _LOOK_S = 0.5, 0.005
# The share of a core that this process may use while it is idle.
_QUIET = 0.1


class AutomaticLayouts:
    """Finds the layouts of all versions that want one. Use it on the event loop."""

    def __init__(self, registry: Registry, cache: LayoutCache) -> None:
        self._registry = registry
        self._cache = cache
        self._change = asyncio.Event()
        registry.on_change(self._change.set)
        # Loads that were looked at; a reload is another one.
        self._done: set[VersionEntry] = set()

    async def run(self) -> None:
        """Finds layouts until it is cancelled. Errors are logged."""
        while True:
            self._change.clear()
            for name, version in self._wanting():
                self._done.add(version)
                try:
                    await self._find(name, version)
                except (ServingError, OSError) as error:
                    _log.warning("model %s version %d keeps its layout: %s", name, version.version, error)
            await self._change.wait()

    def _wanting(self) -> list[tuple[str, VersionEntry]]:
        ready = [(entry.name, version) for entry in self._registry.models for version in entry.ready]
        self._done &= {version for _, version in ready}
        return [
            (name, version)
            for name, version in ready
            if version not in self._done and version.model is not None and version.model.info.wants_layout
        ]

    async def _find(self, name: str, version: VersionEntry) -> None:
        await on_thread(self._cache.check)
        folder = await self._registry.folder(name, version)
        loop = asyncio.get_running_loop()
        tuning = _Tuning(self._registry, loop)
        # The search waits for its measurements, which run on the event loop.
        work = on_thread(partial(self._search, folder, version.version, tuning), f"layout-{name}")
        try:
            digest, before, best, found = await work
        finally:
            tuning.ended = True
        await on_thread(partial(self._cache.put, digest, best))
        _log.info(
            "model %s version %d: %s gives %.1f images/s, %s %.1f; %d layouts measured in %.1f s",
            *(name, version.version, best, found[best].rate, before, found[before].rate, len(found), tuning.spent_s),
        )
        if best != before and version.state is State.READY:
            await self._registry.renew(name, version)

    def _search(
        self, folder: ModelFolder, version: int, tuning: "_Tuning"
    ) -> tuple[str, Layout, Layout, dict[Layout, Measurement]]:
        with opened(folder, version, self._cache.cpu_threads) as layouts:
            axes = _axes(self._cache.cpu_threads, layouts.settings.max_batch_size)
            search = Search(axes, partial(tuning.measure, layouts), Goal(), most=max(len(axes) // 2, 8))
            best = search.run(layouts.current)
            return layouts.digest, layouts.current, best, dict(search.found)


def _axes(budget: int, max_batch_size: int) -> Axes:
    """Returns the layouts that use the whole CPU budget: there is no time to measure those that do not."""
    most = min(max_batch_size, largest_batch(1))
    batches = [1 << power for power in range(most.bit_length()) if 1 << power <= most]
    whole = [(instances, threads) for instances, threads in shapes(budget) if instances + threads > budget]
    return Axes(whole, batches, largest=largest_batch)


class _Tuning:
    """Measures on the event loop for a search on another thread. `ended`: nobody waits for the search any more."""

    def __init__(self, registry: Registry, loop: asyncio.AbstractEventLoop) -> None:
        self._registry = registry
        self._loop = loop
        self._known: dict[Layout, Measurement] = {}
        # When a request was last seen.
        self._busy_s = time.monotonic()
        self.spent_s = 0.0
        self.ended = False

    def measure(self, layouts: Layouts, layout: Layout) -> Measurement:
        """Returns the measurement of a layout. Blocks. Raises `OutOfBudget`."""
        if self._known and self.spent_s >= _BUDGET_S:
            raise OutOfBudget
        measured = None
        while measured is None:
            self._on_loop(self._idle())
            prepared = layouts.prepare(layout)
            began = time.monotonic()
            measured = self._on_loop(self._measured(prepared.measure_runs(layouts.row, _EACH_S)))
        self.spent_s += time.monotonic() - began
        self._known[layout] = measured
        return measured

    def _on_loop(self, work: Coroutine[Any, Any, _T]) -> _T:
        if self.ended:
            work.close()
            raise OutOfBudget
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _is_busy(self) -> bool:
        busy = any(
            version.model is not None and not version.model.is_idle
            for entry in self._registry.models
            for version in entry.versions.values()
        )
        if busy:
            self._busy_s = time.monotonic()
        return busy

    async def _idle(self) -> None:
        """Waits until no request has been there for `_IDLE_S`, and this process has computed nothing else meanwhile.

        Loads, and the rest of self-tests while a version serves already, would make the runs longer.
        """
        while True:
            began_s, used_s = time.monotonic(), time.process_time()
            while self._is_busy() or time.monotonic() < self._busy_s + _IDLE_S:  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(_LOOK_S)
            waited_s = time.monotonic() - began_s
            if waited_s < _IDLE_S / 2 or time.process_time() - used_s < _QUIET * waited_s:
                return
            self._busy_s = time.monotonic()

    async def _measured(self, work: Coroutine[Any, Any, Measurement]) -> Measurement | None:
        """Returns the result of a measurement; None if a request came meanwhile."""
        task = asyncio.create_task(work)
        while not task.done():
            await asyncio.wait((task,), timeout=_LOOK_S)
            if self._is_busy() and not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
                return None
        return task.result()
