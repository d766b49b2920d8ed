"""The dynamic batcher: a bounded queue, a future per request, and dispatch to free instances.

Only the event loop's thread uses the state, so nothing is locked. `policy` decides when to run a batch and how large it
is; this module acts on the decision. Every accepted request ends exactly once: with its rows, with an error, or because
its caller was cancelled.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from cnnserve.batching.guard import Guard, RunLimit
from cnnserve.batching.inline import InlineRuns
from cnnserve.batching.instance import BatchOutcome, ModelInstance
from cnnserve.batching.policy import BatchPolicy, Dispatch, next_action
from cnnserve.batching.request_queue import RequestQueue
from cnnserve.batching.row_check import Streak
from cnnserve.batching.statistics import Statistics
from cnnserve.batching.target import Target
from cnnserve.batching.turnover import Turnover
from cnnserve.datatypes import Rows
from cnnserve.errors import (
    DeadlineExceeded,
    InferenceFailed,
    InvalidInput,
    ModelNotReady,
    QueueFull,
    RunTimedOut,
    ShuttingDown,
)

_log = logging.getLogger(__name__)

_EXPIRED = "the deadline passed while the request waited for a model instance"


# Not frozen: one is made for every request, and to set the fields of a frozen one takes three times as long.
@dataclass(slots=True)
class BatchResult:
    """One request's rows of every output, its times in ns, and the number of rows in its batch.

    `queue_ns`: from arrival to dispatch. `compute_ns`: to assemble and run the batch; its first `input_ns` assembled
    the batch. `output_ns`: from the end of the run until the rows are handed to the caller. `bad_rows`: what is wrong
    with each of the request's rows that must not leave the server, by its index. `started_ns`: when the run began.
    """

    outputs: list[Rows]
    queue_ns: int
    compute_ns: int
    batch_size: int
    input_ns: int
    output_ns: int
    bad_rows: Mapping[int, str] = field(default_factory=dict)
    started_ns: int = 0


# Receives the result of one request, or the error it failed with, on the event loop.
OnDone = Callable[[BatchResult | Exception], None]


class Entry:
    """A request in the queue. At `deadline_ns` it fails, at `demote_ns` it moves behind all others; None: never.

    Dispatch releases the permit. `on_done` is called once; None: it was called, or the caller has left.
    """

    __slots__ = ("arrived_ns", "deadline_ns", "demote_ns", "level", "on_done", "permit", "queued", "rows", "size")

    def __init__(
        self,
        rows: Rows,
        arrived_ns: int,
        deadline_ns: int | None,
        demote_ns: int | None,
        *,
        permit: "Permit",
        on_done: OnDone,
    ) -> None:
        self.rows = rows
        self.arrived_ns = arrived_ns
        self.deadline_ns = deadline_ns
        self.demote_ns = demote_ns
        self.permit = permit
        self.on_done: OnDone | None = on_done
        self.queued = True
        # Read by the policy.
        self.size = len(rows)
        self.level = permit.level

    def settle(self, outcome: BatchResult | Exception) -> None:
        """Tells the caller, unless it was told already or has left."""
        on_done, self.on_done = self.on_done, None
        if on_done is not None:
            on_done(outcome)


@dataclass(frozen=True, slots=True)
class _Arrival:
    """A request that joins the queue at `arrived_ns`, as the limits see it."""

    size: int
    arrived_ns: int
    deadline_ns: int | None


@dataclass(eq=False)
class _Batch:
    entries: list[Entry]
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
    run fails, its requests then fail with `InvalidInput` instead of `InferenceFailed`. `inline`: the model is so small
    that the event loop runs its batches, as long as none takes too long. `guard`: what watches over the runs.
    """

    def __init__(
        self,
        policy: BatchPolicy,
        instances: Sequence[ModelInstance],
        clock: Callable[[], int] = time.monotonic_ns,
        *,
        free_sizes: bool = False,
        inline: InlineRuns | None = None,
        guard: Guard | None = None,
    ) -> None:
        self._guard = guard or Guard()
        self._streak = Streak(self._guard.on_suspect)
        limit_s = self._guard.run_limit_s
        self._run_limit = RunLimit(limit_s, self._longest_run_s, self._overdue) if limit_s is not None else None
        # Why the batcher has given up; "": it has not.
        self._failure = ""
        self._free_sizes = free_sizes
        self._inline = inline
        self._policy = policy
        self._instances = tuple(instances)
        self._idle = list(instances)
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._queue: RequestQueue[Entry] = RequestQueue(policy.priority_levels)
        self._admitted: Counter[int] = Counter()
        self._running: deque[_Batch] = deque()
        self._turnover = Turnover()
        self._limits = Target(policy.target_ms, policy.max_batch_size)
        # What batches depend on.
        self._target = self._limits if policy.target_ms else None
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
    def instances(self) -> int:
        """Number of instances."""
        return len(self._instances)

    @property
    def waiting(self) -> int:
        """Number of requests in the queue."""
        return len(self._queue)

    @property
    def is_idle(self) -> bool:
        """Whether no request is admitted or in a run."""
        return not self._running and not self._admitted.total()

    @property
    def is_untimed(self) -> bool:
        """Whether no queue has a timeout."""
        policies = (self._policy.queue, *self._policy.priority_queues.values())
        return not any(policy.default_timeout_us for policy in policies)

    def reserve(self, size: int, priority: int = 0) -> Permit:
        """Returns a permit for `size` images in the queue of `priority` (0: the model's default).

        Raises `QueueFull` if the queue has not enough free places, `InvalidInput` if it can never hold `size` images,
        `ShuttingDown` if the model is being unloaded, and `ModelNotReady` after `give_up`.
        """
        self._check_failure()
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

    def check_time(self, permit: Permit, deadline_ns: int | None, decoding_ns: int) -> None:
        """Raises what `submit` would raise for a request whose images are decoded first, in at least `decoding_ns`.

        So no image is decoded for a request that would be answered too late.
        """
        self._check_time(permit, self._clock() + decoding_ns, deadline_ns, is_decoded=False)

    def give_back(self, size: int, level: int) -> None:
        """Gives back `size` places in the queue of `level`. Only permits call this."""
        self._admitted[level] -= size
        self._check_drained()

    async def submit(
        self,
        rows: Rows,
        permit: Permit,
        deadline_ns: int | None = None,
        timeout_us: int = 0,
        *,
        last: bool = False,
    ) -> BatchResult:
        """Runs `rows` (one per image) in a batch and returns their rows of every output. Dispatch releases the permit.

        `deadline_ns` (monotonic) always applies. `timeout_us` is the request's own queue timeout; it applies only if
        the queue policy allows it. Raises `DeadlineExceeded` if the deadline passes or the timeout ends before the run
        begins (a policy with `delay_expired` moves the request to the end of the queue at the timeout instead),
        `InferenceFailed` if the run fails, or `InvalidInput` if it fails and the model has `free_sizes`. Raises
        `DeadlineExceeded` at once if the deadline would pass before the run ends. If the model has a latency target,
        raises `QueueFull` or `DeadlineExceeded` as soon as the target or the deadline cannot be met. If the caller
        is cancelled, its request is dropped; the other requests of the batch are not affected. With `last`, requests of
        every priority go first.
        """
        future: asyncio.Future[BatchResult] = self._loop.create_future()
        entry = self.enqueue(rows, permit, partial(_settle, future), deadline_ns, timeout_us, last=last)
        timers = [
            self._loop.call_later(max(0.0, (due_ns - entry.arrived_ns) / 1e9), act, entry)
            for due_ns, act in ((entry.deadline_ns, self._expire), (entry.demote_ns, self._demote))
            if due_ns is not None
        ]
        try:
            return await future
        finally:
            for timer in timers:
                timer.cancel()
            self.withdraw(entry)

    def enqueue(
        self,
        rows: Rows,
        permit: "Permit",
        on_done: OnDone,
        deadline_ns: int | None = None,
        timeout_us: int = 0,
        *,
        last: bool = False,
    ) -> Entry:
        """Queues `rows` and returns at once; `on_done` gets the result or the error. Otherwise as `submit`.

        No timer watches the deadline: the caller withdraws the entry when it passes, and dispatch looks at it.
        """
        self._check_failure()
        entry = self._entry(rows, permit, on_done, deadline_ns, timeout_us)
        try:
            self._check_time(permit, entry.arrived_ns, deadline_ns)
        except (DeadlineExceeded, QueueFull):
            permit.release()
            raise
        if last:
            entry.demote_ns = None
            self._queue.put_last(entry)
        else:
            self._queue.put(entry)
        self._turnover.arrived(entry.arrived_ns)
        self._schedule_pump()
        return entry

    def withdraw(self, entry: Entry) -> None:
        """Forgets the caller of a request, and removes the request from the queue if it is still there."""
        entry.on_done = None
        if entry.queued:
            entry.queued = False
            self._queue.remove(entry)
            entry.permit.release()
            # The requests behind it may fill a batch now.
            self._schedule_pump()

    def refuse_late(self, seconds: float) -> None:
        """Refuses the requests in the queue that will not be answered within `seconds` at the pace of the last runs."""
        # A run that goes on now comes first.
        rounds = int(seconds * 1e9 / self._batch_ns) - (not self._idle)
        fit = max(0, rounds) * self._policy.max_batch_size * max(1, len(self._instances))
        late: list[Entry] = []
        for entry in self._queue:
            fit -= entry.size
            if fit < 0:
                late.append(entry)
        for entry in late:
            on_done = entry.on_done
            self.withdraw(entry)
            if on_done is not None:
                on_done(ShuttingDown("the server ends before this request's turn; send it to another server"))

    async def close(self) -> None:
        """Refuses new requests, waits until all accepted requests are answered, and ends the instances."""
        self._closing = True
        # No more requests arrive that could fill a batch.
        self._policy = replace(self._policy, max_queue_delay_us=0)
        self._schedule_pump()
        self._check_drained()
        await self._drained.wait()
        self._forget_limit()
        for instance in self._instances:
            instance.close()

    def give_up(self, reason: str) -> None:
        """Refuses all requests from now on, also those that were accepted, and ends all runs and instances.

        The callers get `ModelNotReady` with the reason. A run that does not end is left behind.
        """
        self._failure, self._closing = reason, True
        running, self._running = self._running, deque()
        entries = [entry for batch in running for entry in batch.entries]
        while self._queue:
            entry = self._queue.pop()
            entry.queued = False
            entry.permit.release()
            entries.append(entry)
        for entry in entries:
            entry.settle(self._refusal())
        self._forget_limit()
        for instance in self._instances:
            instance.terminate()
            instance.close()
        self._check_drained()

    def _forget_limit(self) -> None:
        # It refers to the batcher. This cycle would keep the session in memory until the garbage collector runs.
        if self._run_limit is not None:
            self._run_limit.cancel()
            self._run_limit = None

    def _refusal(self) -> ModelNotReady:
        return ModelNotReady(f"the version was taken out of service: {self._failure}")

    def _check_failure(self) -> None:
        if self._failure:
            raise self._refusal()

    def _longest_run_s(self) -> float | None:
        """Returns for how long the oldest run has been under way, None if there is none."""
        begun_ns = [batch.dispatched_ns for batch in self._running if batch.outcome is None]
        return (self._clock() - min(begun_ns)) / 1e9 if begun_ns else None

    def _overdue(self) -> None:
        limit_s = self._guard.run_limit_s or 0.0
        reason = f"a run took longer than {limit_s:g} s (cnnserve.run_timeout_s) and was ended"
        told = f"{reason}; check the model before you send this input again"
        end_ns = self._clock() - round(limit_s * 1e9)
        for batch in self._running:
            if batch.outcome is None and batch.dispatched_ns <= end_ns:
                for entry in batch.entries:
                    entry.settle(RunTimedOut(told))
        self.give_up(reason)
        self._guard.on_overdue(reason)

    def _entry(self, rows: Rows, permit: "Permit", on_done: OnDone, deadline_ns: int | None, timeout_us: int) -> Entry:
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
        return Entry(rows, now, deadline_ns, demote_ns, permit=permit, on_done=on_done)

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
            if self._target is not None and self._refuse_first(self._target, now):
                continue
            hold_until_ns = 0 if self._closing else self._turnover.hold_until_ns
            action = next_action(self._policy_now(), self._queue, now, hold_until_ns, self._target)
            if isinstance(action, Dispatch):
                if self._dispatch(action.count, now):
                    # Other clients of the event loop get their turn between two runs on it.
                    self._schedule_pump()
                    return
                continue
            if action.until_ns is not None:
                self._delay_timer = self._loop.call_later(max(0.0, (action.until_ns - now) / 1e9), self._pump)
            return

    def _check_time(self, permit: Permit, arrived_ns: int, deadline_ns: int | None, *, is_decoded: bool = True) -> None:
        """Raises `QueueFull` or `DeadlineExceeded` if a request that joins the queue then would be late."""
        if self._target is None and deadline_ns is None:
            return
        limits, instances = self._limits, len(self._instances)
        arrival = _Arrival(permit.size, arrived_ns, deadline_ns)
        if limits.is_safe(arrival, self._admitted.total() + instances * self._policy.max_batch_size):
            return
        # A request of a higher priority does not wait for the others.
        rows = permit.size + sum(entry.size for entry in self._queue.ahead(permit.level))
        if not is_decoded:
            rows += self._undecoded(permit.level) - permit.size
        if limits.is_hopeless(arrival, rows, instances, self._free_ns()):
            raise self._too_late(arrived_ns, deadline_ns)

    def _undecoded(self, level: int) -> int:
        """Returns the number of images that are admitted up to `level` and not yet in the queue."""
        admitted = sum(size for own, size in self._admitted.items() if own <= level)
        return admitted - sum(entry.size for entry in self._queue if entry.level <= level)

    def _free_ns(self) -> int:
        """Returns when the first of the instances is likely to be free."""
        now = self._clock()
        if self._idle:
            return now
        runs_ns = (
            batch.dispatched_ns + self._limits.run_ns(sum(entry.size for entry in batch.entries))
            for batch in self._running
            if batch.outcome is None
        )
        return max(now, min(runs_ns, default=now))

    def _refuse_first(self, target: Target, now: int) -> bool:
        """Refuses the first request of the queue if it is too late for it; returns whether it was."""
        entry = self._queue.head()
        if not target.is_too_late(entry, now, sum(other.size for other in self._queue)):
            return False
        on_done = entry.on_done
        self.withdraw(entry)
        if on_done is not None:
            on_done(self._too_late(entry.arrived_ns, entry.deadline_ns))
        return True

    def _too_late(self, arrived_ns: int, deadline_ns: int | None) -> DeadlineExceeded | QueueFull:
        target_ns = arrived_ns + self._policy.target_ms * 1e6
        if deadline_ns is not None and (self._target is None or deadline_ns <= target_ns):
            return DeadlineExceeded("the deadline would pass before the request's run ends, so it is not computed")
        return QueueFull(
            f"the model is overloaded: the request cannot be answered within the model's target of "
            f"{self._policy.target_ms:g} ms; try again later",
            self._retry_after_ms(),
        )

    def _dispatch(self, count: int, now: int) -> bool:
        """Runs the first `count` requests; returns whether the event loop has run them."""
        taken = self._take(count)
        for entry in taken:
            if entry.deadline_ns is not None and entry.deadline_ns <= now:
                entry.settle(DeadlineExceeded(_EXPIRED))
        batch = _Batch([entry for entry in taken if entry.on_done is not None], now)
        instance = self._idle.pop() if batch.entries else None
        if instance is not None:
            self._running.append(batch)
        # Only after the batch is in `_running`: otherwise `close` would see neither requests nor a batch and end early.
        for entry in taken:
            entry.permit.release()
        return instance is not None and self._run(instance, batch)

    def _run(self, instance: ModelInstance, batch: _Batch) -> bool:
        """Runs a batch; returns whether it has ended already."""
        parts = [entry.rows for entry in batch.entries]
        if self._inline is not None and sum(entry.size for entry in batch.entries) <= self._inline.rows_at_most:
            outcome = self._inline.run(parts, self._guard.check)
            if not self._inline.was_ended:
                self._finish(instance, batch, outcome, inline=True)
                return True
            _log.warning("a run on the event loop took too long and was ended; the model runs on its own thread now")
            self._inline = None
        instance.execute(parts, partial(self._report, instance, batch), self._guard.check)
        if self._run_limit is not None:
            self._run_limit.begin()
        return False

    def _policy_now(self) -> BatchPolicy:
        """Returns the policy, with batches that the event loop can run if it runs the model."""
        if self._inline is None or self._inline.rows_at_most >= self._policy.max_batch_size:
            return self._policy
        return replace(self._policy, max_batch_size=self._inline.rows_at_most)

    def _take(self, count: int) -> list[Entry]:
        """Takes `count` requests off the queue; fewer if one has rows of another shape, which need a separate run."""
        shape = self._queue.head().rows.shape[1:]
        taken: list[Entry] = []
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

    def _finish(self, instance: ModelInstance, batch: _Batch, outcome: BatchOutcome, *, inline: bool = False) -> None:
        if self._failure:
            return
        self._idle.append(instance)
        batch.outcome = outcome
        run_ns = outcome.finished_ns - outcome.started_ns
        if outcome.error is None:
            size = sum(entry.size for entry in batch.entries)
            self._turnover.ran(size, run_ns, len(batch.entries), self._admitted.total(), self._clock())
            self._limits.times.learn(size, run_ns)
        # The next batch is dispatched before this batch's results are built, so the instance does not wait for them.
        if not inline:
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
                entry.settle(InvalidInput(text))
            return
        if outcome.error is not None:
            _log.error("a batch of %d requests failed: %s", len(batch.entries), outcome.error)
            for entry in batch.entries:
                entry.settle(InferenceFailed(str(outcome.error)))
            return
        size = sum(entry.size for entry in batch.entries)
        compute_ns, input_ns = outcome.finished_ns - outcome.started_ns, outcome.input_ns
        output_ns = max(0, self._clock() - outcome.finished_ns)
        self.statistics.ran(size, input_ns=input_ns, infer_ns=compute_ns - input_ns, output_ns=output_ns)
        all_bad = outcome.bad_rows
        self.statistics.bad_rows += len(all_bad)
        self._streak.add(size, all_bad)
        start = 0
        for entry in batch.entries:
            stop = start + entry.size
            if entry.on_done is not None:
                rows = [output[start:stop] for output in outcome.outputs]
                queue_ns = batch.dispatched_ns - entry.arrived_ns
                bad = {row - start: why for row, why in all_bad.items() if start <= row < stop} if all_bad else all_bad
                entry.settle(
                    BatchResult(rows, queue_ns, compute_ns, size, input_ns, output_ns, bad, outcome.started_ns)
                )
            start = stop

    def _expire(self, entry: Entry) -> None:
        if entry.queued:
            on_done = entry.on_done
            self.withdraw(entry)
            if on_done is not None:
                on_done(DeadlineExceeded(_EXPIRED))

    def _demote(self, entry: Entry) -> None:
        if entry.queued:
            self._queue.demote(entry)

    def _check_drained(self) -> None:
        if self._closing and not self._admitted.total() and not self._running:
            self._drained.set()

    def _retry_after_ms(self) -> int:
        waiting = self._admitted.total() / self._policy.max_batch_size / max(1, len(self._instances))
        return max(1, math.ceil(math.ceil(waiting) * self._batch_ns / 1e6))


def _settle(future: "asyncio.Future[BatchResult]", outcome: BatchResult | Exception) -> None:
    if future.done():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
