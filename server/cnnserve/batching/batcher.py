"""The dynamic batcher: a bounded queue, a future per request, and dispatch to free instances.

Only the event loop's thread uses the state, so nothing is locked. `policy` decides when to run a batch and how large it
is; this module acts on the decision. Every accepted request ends exactly once: with its rows, with an error, or because
its caller was cancelled.
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
    """One request's rows of every output, its times in ns, and the number of rows in its batch.

    `queue_ns`: from arrival to dispatch. `compute_ns`: to assemble and run the batch; its first `input_ns` assembled
    the batch. `output_ns`: from the end of the run until the rows are handed to the caller.
    """

    outputs: list[Rows]
    queue_ns: int
    compute_ns: int
    batch_size: int
    input_ns: int
    output_ns: int


@dataclass(eq=False)
class _Entry:
    """A request in the queue. At `deadline_ns` it fails, at `demote_ns` it moves behind all others; None: never.

    Dispatch releases the permit.
    """

    rows: Rows
    arrived_ns: int
    deadline_ns: int | None
    demote_ns: int | None
    future: asyncio.Future[BatchResult]
    permit: "Permit"
    queued: bool = True
    # Read by the policy and the queue.
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
    """Places for `size` images in one priority level of the queue.

    They are taken before the images are decoded. Dispatch or `release` gives them back.
    """

    def __init__(self, batcher: "DynamicBatcher", size: int, level: int) -> None:
        self._batcher: DynamicBatcher | None = batcher
        self.size = size
        self.level = level

    def __enter__(self) -> "Permit":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def shrink(self, size: int) -> None:
        """Keeps places for `size` images only, because the other images failed before they reached the queue."""
        if self._batcher is not None:
            self._batcher.give_back(self.size - size, self.level)
            self.size = size

    def release(self) -> None:
        """Gives the places back. A second call does nothing."""
        if self._batcher is not None:
            self._batcher.give_back(self.size, self.level)
            self._batcher = None


class DynamicBatcher:
    """Merges requests of one model into batches. Use it on one event loop only.

    `free_sizes`: the model's input has dimensions of any size, and the network may be unable to run some sizes. If a
    run fails, its requests then fail with `InvalidInput` instead of `InferenceFailed`.
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
        # Smoothed run time, for `QueueFull.retry_after_ms`.
        self._batch_ns = 1e6

    def __repr__(self) -> str:
        return (
            f"<DynamicBatcher queued={len(self._queue)} admitted={self._admitted.total()} "
            f"running={len(self._running)} idle={len(self._idle)}/{len(self._instances)}"
            f"{' closing' if self._closing else ''}>"
        )

    @property
    def waiting(self) -> int:
        """Number of requests in the queue."""
        return len(self._queue)

    def reserve(self, size: int, priority: int = 0) -> Permit:
        """Returns a permit for `size` images in the queue of `priority` (0: the model's default).

        Raises `QueueFull` if the queue has not enough free places, `InvalidInput` if it can never hold `size` images,
        and `ShuttingDown` if the model is being unloaded.
        """
        level = self._policy.level(priority)
        limit = self._policy.queue_policy(level).max_queue_size
        if self._closing:
            raise ShuttingDown("the model is being unloaded and accepts no more requests; send the request again")
        if size > limit:
            raise InvalidInput(
                f"the request has {size} images, the model's queue holds at most {limit}; send fewer images in one "
                "request"
            )
        if self._admitted[level] + size > limit:
            raise QueueFull(
                f"the model's queue is full: it holds {self._admitted[level]} of at most {limit} images, and this "
                f"request has {size}; try again later",
                self._retry_after_ms(),
            )
        self._admitted[level] += size
        return Permit(self, size, level)

    def give_back(self, size: int, level: int) -> None:
        """Gives back `size` places in the queue of `level`. Only permits call this."""
        self._admitted[level] -= size
        self._check_drained()

    async def submit(
        self, rows: Rows, permit: Permit, deadline_ns: int | None = None, timeout_us: int = 0
    ) -> BatchResult:
        """Runs `rows` (one per image) in a batch and returns their rows of every output. Dispatch releases the permit.

        `deadline_ns` (monotonic) always applies. `timeout_us` is the request's own queue timeout; it applies only if
        the queue policy allows it. Raises `DeadlineExceeded` if the deadline passes or the timeout ends before the run
        begins (a policy with `delay_expired` moves the request to the end of the queue at the timeout instead),
        `InferenceFailed` if the run fails, or `InvalidInput` if it fails and the model has `free_sizes`. If the caller
        is cancelled, its request is dropped; the other requests of the batch are not affected.
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
        """Refuses new requests, waits until all accepted requests are answered, and ends the instances."""
        self._closing = True
        # No more requests arrive that could fill a batch.
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
        # Requests that arrive in one iteration of the event loop can share a batch, so the pump runs after all of them.
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
        # Only after the batch is in `_running`: otherwise `close` would see neither requests nor a batch and end early.
        for entry in taken:
            entry.permit.release()

    def _take(self, count: int) -> list[_Entry]:
        """Takes `count` requests off the queue; fewer if one has rows of another shape, which need a separate run."""
        shape = self._queue.head().rows.shape[1:]
        taken: list[_Entry] = []
        while len(taken) < count and self._queue.head().rows.shape[1:] == shape:
            entry = self._queue.pop()
            entry.queued = False
            taken.append(entry)
        return taken

    def _report(self, instance: ModelInstance, batch: _Batch, outcome: BatchOutcome) -> None:
        """Hands the outcome to the event loop. Runs on the instance's thread."""
        # If the event loop is closed, no caller waits for the outcome any more.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._finish, instance, batch, outcome)

    def _finish(self, instance: ModelInstance, batch: _Batch, outcome: BatchOutcome) -> None:
        self._idle.append(instance)
        batch.outcome = outcome
        run_ns = outcome.finished_ns - outcome.started_ns
        if outcome.error is None:
            size = sum(entry.size for entry in batch.entries)
            self._turnover.ran(size, run_ns, len(batch.entries), self._admitted.total(), self._clock())
        # The next batch is dispatched before this batch's results are built, so the instance does not wait for them.
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
            # Rows of different shapes never share a run, so all requests of this batch have the shape that failed.
            shape = list(batch.entries[0].rows.shape[1:])
            text = f"the model cannot run rows of shape {shape} ({outcome.error}); send rows of another shape"
            for entry in batch.entries:
                _fail(entry, InvalidInput(text))
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
        """Removes a request from the queue if it is still there."""
        if entry.queued:
            entry.queued = False
            self._queue.remove(entry)
            entry.permit.release()
            # The requests behind it may fill a batch now.
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
