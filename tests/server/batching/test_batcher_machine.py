"""The batcher as a state machine: random arrivals, sizes, priorities, deadlines, cancellations and failures.

Instances and threads are real. Only the session and the clock are fakes: the machine holds the runs and moves the clock
(also that of the event loop, so that timers follow it). The invariants say what must hold.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from numpy.typing import NDArray

from cnnserve.batching.batcher import BatchResult, DynamicBatcher
from cnnserve.batching.instance import BatchOutcome, ModelInstance, OnDone
from cnnserve.batching.policy import BatchPolicy, QueuePolicy, Wait, next_action
from cnnserve.batching.row_check import RowCheck
from cnnserve.errors import DeadlineExceeded, InferenceFailed, QueueFull
from fakes import FakeClock, FakeSession

LIMIT = 12


class TurnedLoop(asyncio.SelectorEventLoop):
    """An event loop with a clock that the machine moves."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self._clock = clock

    def time(self) -> float:
        return self._clock() / 1e9


class Recorder(ModelInstance):
    """A real instance that also reports its batches, in the order of dispatch."""

    def __init__(self, index: int, told: Callable[[int, list[int]], None]) -> None:
        self.session = FakeSession(held=True)
        self.index = index
        self.rows: list[int] = []
        self._told = told
        super().__init__(self.session, f"machine-{index}")

    def execute(self, parts: Sequence[NDArray[Any]], on_done: OnDone, check: RowCheck | None = None) -> None:
        self.rows = [int(value) for part in parts for value in part[:, 0]]
        self._told(self.index, self.rows)
        super().execute(parts, on_done, check)


@dataclass
class Request:
    """An accepted request."""

    number: int
    size: int
    level: int
    deadline_ns: int | None
    task: asyncio.Task[BatchResult]
    cancelled: bool = False
    demotable: bool = False


class BatcherMachine(RuleBasedStateMachine):
    """See the module's docstring."""

    @initialize(
        instances=st.integers(1, 3),
        largest=st.integers(1, 8),
        delay_us=st.sampled_from([0, 0, 500]),
        preferred=st.sets(st.integers(1, 8), max_size=2),
        timeout_us=st.sampled_from([0, 0, 800]),
        delay_expired=st.booleans(),
        preserve=st.booleans(),
        fixed_ms=st.sampled_from([0, 0, 2, 5]),
    )
    def start(
        self,
        instances: int,
        largest: int,
        delay_us: int,
        preferred: set[int],
        timeout_us: int,
        delay_expired: bool,
        preserve: bool,
        fixed_ms: int,
    ) -> None:
        # A run takes this time and a millisecond per image, by the clock that the machine moves.
        self.fixed_ns = fixed_ms * 1_000_000
        self.hold_ends_ns = 0
        self.clock = FakeClock()
        self.loop = TurnedLoop(self.clock)
        self.policy = BatchPolicy(
            largest,
            tuple(sorted(size for size in preferred if size <= largest)),
            delay_us,
            QueuePolicy(LIMIT, timeout_us, delay_expired),
            priority_levels=2,
            default_priority=2,
            preserve_ordering=preserve,
        )
        self.instances = [Recorder(index, self._check_run) for index in range(instances)]
        self.busy: set[int] = set()
        self.requests: dict[int, Request] = {}
        self.seen_runs: set[int] = set()
        self.dispatched: list[int] = []
        self.failed: set[int] = set()
        self.batcher = self.loop.run_until_complete(self._make())

    async def _make(self) -> DynamicBatcher:
        return DynamicBatcher(self.policy, self.instances, self.clock)

    async def _settle(self) -> None:
        for _ in range(12):
            await asyncio.sleep(0)

    def _step(self) -> None:
        """Runs the loop until nothing more happens without a further event."""
        self.loop.run_until_complete(self._settle())

    def _check_run(self, index: int, rows: list[int]) -> None:
        assert index not in self.busy, "two batches at once on one instance"
        self.busy.add(index)
        numbers = list(dict.fromkeys(rows))
        assert len(rows) <= self.policy.max_batch_size
        for number in numbers:
            request = self.requests[number]
            assert number not in self.seen_runs, "run twice"
            assert rows.count(number) == request.size, "split"
            assert not request.cancelled, "cancelled, and run all the same"
            assert request.deadline_ns is None or request.deadline_ns > self.clock(), "run after its deadline"
            self.seen_runs.add(number)
        self.dispatched += numbers

    @rule(
        size=st.integers(1, 5),
        priority=st.integers(0, 3),
        timeout_us=st.none() | st.integers(1, 2000),
        together=st.integers(1, 3),
    )
    def arrive(self, size: int, priority: int, timeout_us: int | None, together: int) -> None:
        for _ in range(together):
            self._arrive(min(size, self.policy.max_batch_size), priority, timeout_us)
        self._step()

    def _arrive(self, size: int, priority: int, timeout_us: int | None) -> None:
        level = self.policy.level(priority)
        waiting = self.batcher._admitted[level]
        try:
            permit = self.batcher.reserve(size, priority)
        except QueueFull:
            assert waiting + size > LIMIT
            return
        assert waiting + size <= LIMIT
        number = len(self.requests)
        deadline_ns = None if timeout_us is None else self.clock() + timeout_us * 1000
        rows = np.full((size, 1), number, np.float64)
        task = self.loop.create_task(self.batcher.submit(rows, permit, deadline_ns))
        own = self.policy.queue.default_timeout_us
        if own and not self.policy.queue.delay_expired:
            due_ns = self.clock() + own * 1000
            deadline_ns = due_ns if deadline_ns is None else min(deadline_ns, due_ns)
        demotable = bool(own) and self.policy.queue.delay_expired
        self.requests[number] = Request(number, size, level, deadline_ns, task, demotable=demotable)

    @rule(microseconds=st.integers(1, 1500))
    def time_passes(self, microseconds: int) -> None:
        self.clock.advance_us(microseconds)
        self._step()

    @precondition(lambda self: self.busy)
    @rule(data=st.data(), fail=st.sampled_from([False, False, False, True]))
    def finish(self, data: st.DataObject, fail: bool) -> None:
        index = data.draw(st.sampled_from(sorted(self.busy)))
        self._finish(index, fail)

    def _finish(self, index: int, fail: bool = False) -> None:
        instance = self.instances[index]
        if fail:
            self.failed.update(instance.rows)
            instance.session.failures.append(RuntimeError("the session broke"))
        finished = self.loop.create_future()
        report = self.batcher._finish

        def reported(instance: ModelInstance, batch: Any, outcome: BatchOutcome) -> None:
            # Before the batcher is notified, because it may give the instance its next batch at once.
            self.busy.discard(index)
            run_ns = self.fixed_ns + 1_000_000 * sum(entry.size for entry in batch.entries)
            self.hold_ends_ns = self.clock() + self.fixed_ns
            report(instance, batch, replace(outcome, started_ns=0, finished_ns=run_ns))
            finished.set_result(None)

        self.batcher._finish = reported  # type: ignore[method-assign]
        instance.session.let()
        self.loop.run_until_complete(finished)
        self.batcher._finish = report  # type: ignore[method-assign]
        self._step()

    @precondition(lambda self: any(not request.task.done() for request in self.requests.values()))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        pending = [number for number, request in self.requests.items() if not request.task.done()]
        request = self.requests[data.draw(st.sampled_from(pending))]
        request.task.cancel()
        self._step()
        request.cancelled = True

    @invariant()
    def first_in_first_out_within_a_level(self) -> None:
        if not hasattr(self, "requests"):
            return
        for level in (1, 2):
            order = [n for n in self.dispatched if self.requests[n].level == level and not self.requests[n].demotable]
            assert order == sorted(order)

    @invariant()
    def no_instance_is_idle_while_eligible_work_waits(self) -> None:
        if hasattr(self, "batcher") and self.batcher._idle:
            hold_until_ns = self.batcher._turnover.hold_until_ns
            action = next_action(self.policy, self.batcher._queue, self.clock(), hold_until_ns)
            assert isinstance(action, Wait)
            assert action.until_ns is None or self.policy.max_queue_delay_us or action.until_ns <= self.hold_ends_ns

    @invariant()
    def nothing_waits_past_its_deadline(self) -> None:
        for request in getattr(self, "requests", {}).values():
            if request.deadline_ns is not None and request.deadline_ns < self.clock():
                assert request.task.done() or request.number in self.seen_runs

    def teardown(self) -> None:
        """Checks that every accepted request gets exactly one result, with its own rows."""
        if not hasattr(self, "batcher"):
            return
        closing = self.loop.create_task(self.batcher.close())
        self._step()
        while self.busy:
            self._finish(min(self.busy))
        self.loop.run_until_complete(closing)
        for request in self.requests.values():
            self._check_answer(request)
        self.loop.close()

    def _check_answer(self, request: Request) -> None:
        assert request.task.done(), "not answered"
        if request.task.cancelled():
            assert request.cancelled
            return
        error = request.task.exception()
        if error is None:
            assert request.number in self.seen_runs
            assert request.task.result().outputs[0].ravel().tolist() == [request.number] * request.size
        elif isinstance(error, DeadlineExceeded):
            assert request.number not in self.seen_runs, "expired, and run all the same"
            assert request.deadline_ns is not None
        else:
            assert isinstance(error, InferenceFailed)
            assert request.number in self.failed


TestBatcher = BatcherMachine.TestCase
TestBatcher.settings = settings(max_examples=150, stateful_step_count=30)
