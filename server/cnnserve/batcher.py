"""The dynamic batcher: a bounded queue, a future per request, and dispatch to free instances.

All state lives on the event loop's thread, so nothing here is locked. `batch_policy` decides, this file acts. Every
accepted entry is answered exactly once: with its rows, with an error, or by its caller's own cancellation.
"""

import asyncio
import contextlib
import functools
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from cnnserve.batch_policy import BatchPolicy, Dispatch, Waiting, next_action
from cnnserve.errors import DeadlineExceeded, InferenceFailed, InvalidInput, QueueFull, ShuttingDown
from cnnserve.instance import BatchOutcome, ModelInstance, Rows

_log = logging.getLogger(__name__)

_EXPIRED = "the deadline passed while the request waited for a model instance"


@dataclass(frozen=True)
class BatchResult:
    """One entry's rows of every output, how long it waited and how long its batch ran (ns)."""

    outputs: list[Rows]
    queue_ns: int
    compute_ns: int
    batch_size: int


@dataclass(eq=False)
class _Entry:
    rows: Rows
    arrived_ns: int
    deadline_ns: int | None
    future: asyncio.Future[BatchResult]
    # Read by the policy.
    size: int = field(init=False)

    def __post_init__(self) -> None:
        self.size = len(self.rows)

    def waiting(self) -> Waiting:
        return Waiting(self.size, self.arrived_ns)


class Permit:
    """Room for `size` images in a model's queue, taken before decoding; given back on dispatch or by `release`."""

    def __init__(self, batcher: "DynamicBatcher", size: int) -> None:
        self._batcher: DynamicBatcher | None = batcher
        self.size = size

    def shrink(self, size: int) -> None:
        """Keeps room for `size` images only: the others failed before they reached the queue."""
        if self._batcher is not None:
            self._batcher.give_back(self.size - size)
            self.size = size

    def release(self) -> None:
        """Gives the room back; a second call does nothing."""
        if self._batcher is not None:
            self._batcher.give_back(self.size)
            self._batcher = None


class DynamicBatcher:
    """Merges entries of one model into batches. Use on one event loop only."""

    def __init__(
        self,
        policy: BatchPolicy,
        instances: Sequence[ModelInstance],
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._policy = policy
        self._instances = tuple(instances)
        self._idle = list(instances)
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._queue: deque[_Entry] = deque()
        self._permits: dict[_Entry, Permit] = {}
        self._admitted = 0
        self._running = 0
        self._closing = False
        self._drained = asyncio.Event()
        self._pump_handle: asyncio.Handle | None = None
        self._delay_timer: asyncio.TimerHandle | None = None
        # A smoothed run time, for the hint in QueueFull.
        self._batch_ns = 1e6

    def __repr__(self) -> str:
        return (
            f"<DynamicBatcher queued={len(self._queue)} admitted={self._admitted} running={self._running} "
            f"idle={len(self._idle)}/{len(self._instances)}{' closing' if self._closing else ''}>"
        )

    def reserve(self, size: int) -> Permit:
        """Takes room for `size` images. Raises `QueueFull` at once where there is none."""
        limit = self._policy.max_queue_size
        if self._closing:
            raise ShuttingDown("the model is being unloaded")
        if size > limit:
            raise InvalidInput(f"{size} images can never fit into the model's queue of {limit}; send fewer at once")
        if self._admitted + size > limit:
            raise QueueFull(
                f"the model's queue is full: {self._admitted} images wait, {limit} may, {size} more were sent",
                self._retry_after_ms(),
            )
        self._admitted += size
        return Permit(self, size)

    def give_back(self, size: int) -> None:
        """Called by permits only."""
        self._admitted -= size
        self._check_drained()

    async def submit(self, rows: Rows, permit: Permit, deadline_ns: int | None = None) -> BatchResult:
        """Runs `rows` (n x one image) in some batch. The permit is given back at dispatch.

        Raises `DeadlineExceeded` where the deadline (monotonic ns) passes before the run begins, `InferenceFailed`
        where the run fails. Cancelling the caller drops the entry; its batch-mates are not touched.
        """
        now = self._clock()
        timeout_ns = self._policy.default_timeout_us * 1000
        if timeout_ns:
            deadline_ns = min(deadline_ns or now + timeout_ns, now + timeout_ns)
        entry = _Entry(rows, now, deadline_ns, self._loop.create_future())
        self._queue.append(entry)
        self._permits[entry] = permit
        self._schedule_pump()
        timer = None
        if deadline_ns is not None:
            timer = self._loop.call_later(max(0.0, (deadline_ns - now) / 1e9), self._expire, entry)
        try:
            return await entry.future
        finally:
            if timer is not None:
                timer.cancel()
            self._withdraw(entry)

    async def close(self) -> None:
        """Takes nothing new, waits until everything accepted is answered, ends the instances."""
        self._closing = True
        # Nothing more will come to fill a batch.
        self._policy = replace(self._policy, max_queue_delay_us=0)
        self._schedule_pump()
        self._check_drained()
        await self._drained.wait()
        for instance in self._instances:
            instance.close()

    def _schedule_pump(self) -> None:
        # Once per turn of the loop, after everything that arrived in the same turn: those share a batch.
        if self._idle and self._pump_handle is None:
            self._pump_handle = self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_handle = None
        if self._delay_timer is not None:
            self._delay_timer.cancel()
            self._delay_timer = None
        while self._idle and self._queue:
            now = self._clock()
            action = next_action(self._policy, (entry.waiting() for entry in self._queue), now)
            if isinstance(action, Dispatch):
                self._dispatch(action.count, now)
                continue
            if action.until_ns is not None:
                self._delay_timer = self._loop.call_later(max(0.0, (action.until_ns - now) / 1e9), self._pump)
            return

    def _dispatch(self, count: int, now: int) -> None:
        batch, permits = self._take(count, now)
        if batch:
            instance = self._idle.pop()
            self._running += 1
            finish = functools.partial(self._finish, instance, batch, now)
            instance.execute([entry.rows for entry in batch], functools.partial(self._report, finish))
        # After `_running` went up: a drain must not see the moment in between.
        for permit in permits:
            permit.release()

    def _take(self, count: int, now: int) -> tuple[list[_Entry], list[Permit]]:
        """Takes `count` entries off the queue, fewer where the shape changes; the expired ones are answered here."""
        batch: list[_Entry] = []
        permits: list[Permit] = []
        for _ in range(count):
            entry = self._queue[0]
            # Rows of another shape (a model with free height and width) need a run of their own.
            if batch and entry.rows.shape[1:] != batch[0].rows.shape[1:]:
                break
            self._queue.popleft()
            permits.append(self._permits.pop(entry))
            if entry.deadline_ns is not None and entry.deadline_ns <= now:
                _fail(entry, DeadlineExceeded(_EXPIRED))
            elif not entry.future.done():
                batch.append(entry)
        return batch, permits

    def _report(self, finish: Callable[[BatchOutcome], None], outcome: BatchOutcome) -> None:
        """On the instance's thread. A loop that is closed has nobody left to tell."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(finish, outcome)

    def _finish(self, instance: ModelInstance, batch: list[_Entry], dispatched_ns: int, outcome: BatchOutcome) -> None:
        self._idle.append(instance)
        self._running -= 1
        # The next batch goes out before this one's answers are built: the instance does not wait for them.
        self._pump()
        compute_ns = outcome.finished_ns - outcome.started_ns
        self._batch_ns += 0.2 * (compute_ns - self._batch_ns)
        if outcome.error is not None:
            _log.error("a batch of %d failed: %s", sum(e.size for e in batch), outcome.error)
            for entry in batch:
                _fail(entry, InferenceFailed(str(outcome.error)))
        else:
            _answer(batch, outcome.outputs, dispatched_ns, compute_ns)
        self._check_drained()

    def _expire(self, entry: _Entry) -> None:
        if entry in self._permits:
            self._withdraw(entry)
            _fail(entry, DeadlineExceeded(_EXPIRED))

    def _withdraw(self, entry: _Entry) -> None:
        """Takes an entry out of the queue if it is still there."""
        permit = self._permits.pop(entry, None)
        if permit is not None:
            self._queue.remove(entry)
            permit.release()

    def _check_drained(self) -> None:
        if self._closing and not self._admitted and not self._running and not self._queue:
            self._drained.set()

    def _retry_after_ms(self) -> int:
        batches = math.ceil(self._admitted / self._policy.max_batch_size / max(1, len(self._instances)))
        return max(1, math.ceil(batches * self._batch_ns / 1e6))


def _answer(batch: list[_Entry], outputs: list[Rows], dispatched_ns: int, compute_ns: int) -> None:
    size = sum(entry.size for entry in batch)
    start = 0
    for entry in batch:
        stop = start + entry.size
        if not entry.future.done():
            rows = [output[start:stop] for output in outputs]
            entry.future.set_result(BatchResult(rows, dispatched_ns - entry.arrived_ns, compute_ns, size))
        start = stop


def _fail(entry: _Entry, error: Exception) -> None:
    if not entry.future.done():
        entry.future.set_exception(error)
