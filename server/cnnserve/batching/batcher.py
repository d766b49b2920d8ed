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
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from cnnserve.batching.instance import BatchOutcome, ModelInstance
from cnnserve.batching.policy import BatchPolicy, Dispatch, next_action
from cnnserve.batching.request_queue import RequestQueue
from cnnserve.batching.statistics import Statistics
from cnnserve.batching.turnover import Turnover
from cnnserve.datatypes import Rows
from cnnserve.errors import DeadlineExceeded, InferenceFailed, InvalidInput, QueueFull, ShuttingDown

_log = logging.getLogger(__name__)

_EXPIRED = "the deadline passed while the request waited for a model instance"


@dataclass(frozen=True)
class BatchResult:
    """One entry's rows of every output, how long it waited and how long its batch ran (ns).

    `input_ns` of `compute_ns` put the batch together; `output_ns` after it brought the rows to whoever waits for them.
    """

    outputs: list[Rows]
    queue_ns: int
    compute_ns: int
    batch_size: int
    input_ns: int
    output_ns: int


@dataclass(eq=False)
class _Entry:
    """`deadline_ns` refuses it, `demote_ns` moves it behind all others; None: never. Its permit goes at dispatch."""

    rows: Rows
    arrived_ns: int
    deadline_ns: int | None
    demote_ns: int | None
    future: asyncio.Future[BatchResult]
    permit: "Permit"
    queued: bool = True
    # Read by the policy.
    size: int = field(init=False)
    level: int = field(init=False)

    def __post_init__(self) -> None:
        self.size = len(self.rows)
        self.level = self.permit.level


@dataclass(eq=False)
class _Batch:
    entries: list[_Entry]
    dispatched_ns: int
    outcome: BatchOutcome | None = None


class Permit:
    """Room for `size` images in a level of the queue, taken before decoding; given back at dispatch or by `release`."""

    def __init__(self, batcher: "DynamicBatcher", size: int, level: int) -> None:
        self._batcher: DynamicBatcher | None = batcher
        self.size = size
        self.level = level

    def __enter__(self) -> "Permit":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def shrink(self, size: int) -> None:
        """Keeps room for `size` images only: the others failed before they reached the queue."""
        if self._batcher is not None:
            self._batcher.give_back(self.size - size, self.level)
            self.size = size

    def release(self) -> None:
        """Gives the room back; a second call does nothing."""
        if self._batcher is not None:
            self._batcher.give_back(self.size, self.level)
            self._batcher = None


class DynamicBatcher:
    """Merges entries of one model into batches. Use on one event loop only.

    `free_sizes`: rows may have sizes that the model cannot run, so a run that fails is the fault of who sent them.
    """

    def __init__(
        self,
        policy: BatchPolicy,
        instances: Sequence[ModelInstance],
        clock: Callable[[], int] = time.monotonic_ns,
        *,
        free_sizes: bool = False,
    ) -> None:
        self._free_sizes = free_sizes
        self._policy = policy
        self._instances = tuple(instances)
        self._idle = list(instances)
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._queue: RequestQueue[_Entry] = RequestQueue(policy.priority_levels)
        self._admitted: Counter[int] = Counter()
        self._running: deque[_Batch] = deque()
        self._turnover = Turnover()
        self.statistics = Statistics()
        self._closing = False
        self._drained = asyncio.Event()
        self._pump_handle: asyncio.Handle | None = None
        self._delay_timer: asyncio.TimerHandle | None = None
        # A smoothed run time, for the hint in QueueFull.
        self._batch_ns = 1e6

    def __repr__(self) -> str:
        return (
            f"<DynamicBatcher queued={len(self._queue)} admitted={self._admitted.total()} "
            f"running={len(self._running)} idle={len(self._idle)}/{len(self._instances)}"
            f"{' closing' if self._closing else ''}>"
        )

    @property
    def waiting(self) -> int:
        """Entries in the queue."""
        return len(self._queue)

    def reserve(self, size: int, priority: int = 0) -> Permit:
        """Takes room for `size` images. Raises `QueueFull` at once where there is none."""
        level = self._policy.level(priority)
        limit = self._policy.queue_policy(level).max_queue_size
        if self._closing:
            raise ShuttingDown("the model is being unloaded")
        if size > limit:
            raise InvalidInput(f"{size} images can never fit into the model's queue of {limit}; send fewer at once")
        if self._admitted[level] + size > limit:
            raise QueueFull(
                f"the model's queue is full: {self._admitted[level]} images wait, {limit} may, {size} more were sent",
                self._retry_after_ms(),
            )
        self._admitted[level] += size
        return Permit(self, size, level)

    def give_back(self, size: int, level: int) -> None:
        """Called by permits only."""
        self._admitted[level] -= size
        self._check_drained()

    async def submit(
        self, rows: Rows, permit: Permit, deadline_ns: int | None = None, timeout_us: int = 0
    ) -> BatchResult:
        """Runs `rows` (n x one image) in some batch. The permit is given back at dispatch.

        `deadline_ns` (monotonic) always refuses; `timeout_us` is the request's own queue timeout and counts only where
        the queue policy lets it. Raises `DeadlineExceeded` where the time passes before the run begins,
        `InferenceFailed` where the run fails. Cancelling the caller drops the entry; its batch-mates are not touched.
        """
        entry = self._entry(rows, permit, deadline_ns, timeout_us)
        self._queue.put(entry)
        self._turnover.arrived(entry.arrived_ns)
        self._schedule_pump()
        timers = [
            self._loop.call_later(max(0.0, (due_ns - entry.arrived_ns) / 1e9), act, entry)
            for due_ns, act in ((entry.deadline_ns, self._expire), (entry.demote_ns, self._demote))
            if due_ns is not None
        ]
        try:
            return await entry.future
        finally:
            for timer in timers:
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

    def _entry(self, rows: Rows, permit: Permit, deadline_ns: int | None, timeout_us: int) -> _Entry:
        now = self._clock()
        policy = self._policy.queue_policy(permit.level)
        timeout = policy.default_timeout_us
        if policy.timeout_override and timeout_us:
            timeout = min(timeout or timeout_us, timeout_us)
        due_ns = now + timeout * 1000 if timeout else None
        if policy.delay_expired:
            demote_ns = due_ns
        else:
            demote_ns = None
            deadline_ns = min((due for due in (deadline_ns, due_ns) if due is not None), default=None)
        return _Entry(rows, now, deadline_ns, demote_ns, self._loop.create_future(), permit)

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
            hold_until_ns = 0 if self._closing else self._turnover.hold_until_ns
            action = next_action(self._policy, self._queue, now, hold_until_ns)
            if isinstance(action, Dispatch):
                self._dispatch(action.count, now)
                continue
            if action.until_ns is not None:
                self._delay_timer = self._loop.call_later(max(0.0, (action.until_ns - now) / 1e9), self._pump)
            return

    def _dispatch(self, count: int, now: int) -> None:
        taken = self._take(count)
        expired = [entry for entry in taken if entry.deadline_ns is not None and entry.deadline_ns <= now]
        for entry in expired:
            _fail(entry, DeadlineExceeded(_EXPIRED))
        batch = _Batch([entry for entry in taken if not entry.future.done()], now)
        if batch.entries:
            instance = self._idle.pop()
            self._running.append(batch)
            report = functools.partial(self._report, instance, batch)
            instance.execute([entry.rows for entry in batch.entries], report)
        # After `_running` grew: a drain must not see the moment in between.
        for entry in taken:
            entry.permit.release()

    def _take(self, count: int) -> list[_Entry]:
        """Takes `count` entries off the queue, fewer where rows of another shape need a run of their own."""
        shape = self._queue.head().rows.shape[1:]
        taken: list[_Entry] = []
        while len(taken) < count and self._queue.head().rows.shape[1:] == shape:
            entry = self._queue.pop()
            entry.queued = False
            taken.append(entry)
        return taken

    def _report(self, instance: ModelInstance, batch: _Batch, outcome: BatchOutcome) -> None:
        """On the instance's thread. A loop that is closed has nobody left to tell."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._finish, instance, batch, outcome)

    def _finish(self, instance: ModelInstance, batch: _Batch, outcome: BatchOutcome) -> None:
        self._idle.append(instance)
        batch.outcome = outcome
        run_ns = outcome.finished_ns - outcome.started_ns
        if outcome.error is None:
            size = sum(entry.size for entry in batch.entries)
            self._turnover.ran(size, run_ns, len(batch.entries), self._admitted.total(), self._clock())
        # The next batch goes out before this one's answers are built: the instance does not wait for them.
        self._pump()
        self._batch_ns += 0.2 * (run_ns - self._batch_ns)
        if not self._policy.preserve_ordering:
            self._running.remove(batch)
            self._answer(batch, outcome)
        while self._running and self._running[0].outcome is not None:
            done = self._running.popleft()
            if done.outcome is not None:
                self._answer(done, done.outcome)
        self._check_drained()

    def _answer(self, batch: _Batch, outcome: BatchOutcome) -> None:
        if self._free_sizes and isinstance(outcome.error, InferenceFailed):
            # Rows of another shape were in another run: these have all the same wrong sizes.
            shape = list(batch.entries[0].rows.shape[1:])
            for entry in batch.entries:
                _fail(entry, InvalidInput(f"rows of shape {shape} do not run through the model: {outcome.error}"))
            return
        if outcome.error is not None:
            _log.error("a batch of %d requests failed: %s", len(batch.entries), outcome.error)
            for entry in batch.entries:
                _fail(entry, InferenceFailed(str(outcome.error)))
            return
        size = sum(entry.size for entry in batch.entries)
        compute_ns, input_ns = outcome.finished_ns - outcome.started_ns, outcome.input_ns
        output_ns = max(0, self._clock() - outcome.finished_ns)
        self.statistics.ran(size, input_ns=input_ns, infer_ns=compute_ns - input_ns, output_ns=output_ns)
        start = 0
        for entry in batch.entries:
            stop = start + entry.size
            if not entry.future.done():
                rows = [output[start:stop] for output in outcome.outputs]
                queue_ns = batch.dispatched_ns - entry.arrived_ns
                entry.future.set_result(BatchResult(rows, queue_ns, compute_ns, size, input_ns, output_ns))
            start = stop

    def _expire(self, entry: _Entry) -> None:
        if entry.queued:
            self._withdraw(entry)
            _fail(entry, DeadlineExceeded(_EXPIRED))

    def _demote(self, entry: _Entry) -> None:
        if entry.queued:
            self._queue.demote(entry)

    def _withdraw(self, entry: _Entry) -> None:
        """Takes an entry out of the queue if it is still there."""
        if entry.queued:
            entry.queued = False
            self._queue.remove(entry)
            entry.permit.release()
            # What stood behind it may make a batch now.
            self._schedule_pump()

    def _check_drained(self) -> None:
        if self._closing and not self._admitted.total() and not self._running:
            self._drained.set()

    def _retry_after_ms(self) -> int:
        waiting = self._admitted.total() / self._policy.max_batch_size / max(1, len(self._instances))
        return max(1, math.ceil(math.ceil(waiting) * self._batch_ns / 1e6))


def _fail(entry: _Entry, error: Exception) -> None:
    if not entry.future.done():
        entry.future.set_exception(error)
