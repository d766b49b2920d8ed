"""The stream of measurements: once a second, what each model did since the second before, and 15 minutes of it.

Measurements are taken only while somebody looks. The numbers come from the snapshot that `/metrics` writes.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from starlette.responses import Response, StreamingResponse

from cnnserve.batching.statistics import BOUNDS_NS
from cnnserve.errors import LimitReached
from cnnserve.registry.snapshot import Snapshot, Version, Work
from cnnserve.transports.http.answers import encode
from cnnserve.transports.http.exchange import Exchange

_EVERY_S = 1.0
_HISTORY = 15 * 60
# 15 minutes of about 100 models that all work; with more, the history is shorter.
_MOST_BYTES = 32 * 2**20
_MOST_VIEWERS = 16
# A viewer that is so many events behind does not read.
_MOST_UNREAD = 60
_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


class Live:
    """Sends measurements to those who look. Use on one event loop.

    `snapshot` is called on the event loop. When `ending` is set, the streams end.
    """

    def __init__(self, snapshot: Callable[[], Snapshot], ending: asyncio.Event) -> None:
        self._snapshot = snapshot
        self._ending = ending
        self._history: deque[bytes] = deque()
        self._history_bytes = 0
        self._viewers: set[asyncio.Queue[bytes | None]] = set()
        self._sampling: asyncio.Task[None] | None = None

    async def stream(self, _: Exchange) -> Response:
        """Returns the stream as server-sent events: what was measured before, then one event a second.

        Raises `LimitReached` if too many clients look.
        """
        if len(self._viewers) >= _MOST_VIEWERS:
            raise LimitReached(f"{_MOST_VIEWERS} clients look at the measurements already; close one of them")
        return StreamingResponse(self._events(), headers=_HEADERS, media_type="text/event-stream")

    async def _events(self) -> AsyncIterator[bytes]:
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(_MOST_UNREAD)
        self._viewers.add(queue)
        if self._sampling is None:
            self._sampling = asyncio.create_task(self._sample())
        try:
            yield b"".join(self._history) or b": nothing was measured before\n\n"
            while (event := await queue.get()) is not None:
                yield event
        finally:
            self._viewers.discard(queue)

    async def _sample(self) -> None:
        """Measures until nobody looks any more."""
        before, then = self._snapshot(), time.monotonic()
        try:
            while self._viewers and not await self._ends_within(_EVERY_S):
                now, moment = self._snapshot(), time.monotonic()
                event = b"data: %s\n\n" % encode(measured(before, now, moment - then) | {"t": round(time.time(), 3)})
                before, then = now, moment
                self._remember(event)
                self._tell(event)
        finally:
            self._sampling = None
            for queue in self._viewers:
                with contextlib.suppress(asyncio.QueueFull):
                    queue.put_nowait(None)

    def _remember(self, event: bytes) -> None:
        self._history.append(event)
        self._history_bytes += len(event)
        while len(self._history) > _HISTORY or self._history_bytes > _MOST_BYTES:
            self._history_bytes -= len(self._history.popleft())

    async def _ends_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ending.wait()
        return self._ending.is_set()

    def _tell(self, event: bytes) -> None:
        for queue in [*self._viewers]:
            try:
                queue.put_nowait(event)
            except asyncio.QueueFull:
                self._viewers.discard(queue)
                # Its stream ends: what it has not read would be old.
                while not queue.empty():
                    queue.get_nowait()
                queue.put_nowait(None)


def measured(before: Snapshot, now: Snapshot, seconds: float) -> dict[str, Any]:
    """Returns what happened between two snapshots, by model and version. Versions that did nothing are left out."""
    known = {(version.model, version.version): version.work for version in before.versions}
    models = {}
    for version in now.versions:
        old = known.get((version.model, version.version))
        if did := _did(old, version, seconds):
            models[f"{version.model}/{version.version}"] = did
    refused = _increase(before.refusals, now.refusals)
    return {"models": models, "refused": refused, "held": now.held_bytes, "limit": now.limit_bytes}


def _did(old: Work | None, version: Version, seconds: float) -> dict[str, Any] | None:
    work = version.work
    # A version that was loaded again counts from zero.
    if work is None or old is None or work.executions < old.executions or work.success < old.success:
        return None
    batches = _increase(old.batches, work.batches)
    errors = _increase(old.failures, work.failures)
    requests, runs = work.success - old.success, sum(batches.values())
    if not (requests or runs or errors or work.waiting):
        return None
    counts = [new - was for new, was in zip(work.request.counts, old.request.counts, strict=True)]
    return {
        "images": round((work.inferences - old.inferences) / seconds, 2),
        "requests": round(requests / seconds, 2),
        "p50": _quantile_ms(counts, 0.5),
        "p99": _quantile_ms(counts, 0.99),
        "batches": {str(size): count for size, count in sorted(batches.items())},
        "waiting": work.waiting,
        "busy": round((work.busy_ns - old.busy_ns) / 1e9 / seconds, 3),
        "instances": work.instances,
        "errors": errors,
    }


def _increase(old: Mapping[Any, int], new: Mapping[Any, int]) -> dict[Any, int]:
    return {key: count - old.get(key, 0) for key, count in new.items() if count > old.get(key, 0)}


def _quantile_ms(counts: Sequence[int], share: float) -> float | None:
    """Returns a quantile in ms, as if times were spread evenly within each bucket; None if there are no times."""
    rank = share * sum(counts)
    if not rank:
        return None
    low = 0
    for high, count in zip((*BOUNDS_NS, BOUNDS_NS[-1]), counts, strict=True):
        if count and rank <= count:
            return round((low + (high - low) * rank / count) / 1e6, 3)
        rank -= count
        low = high
    return round(low / 1e6, 3)
