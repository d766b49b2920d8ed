"""The dynamic batcher, with real threads and a session whose runs a test can hold."""

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from cnnserve.batching.batcher import BatchResult, DynamicBatcher
from cnnserve.batching.instance import ModelInstance
from cnnserve.batching.policy import BatchPolicy, QueuePolicy
from cnnserve.errors import DeadlineExceeded, InferenceFailed, InvalidInput, QueueFull, ShuttingDown
from fakes import FakeClock, FakeSession
from support import HANG_S

MakeBatcher = Callable[..., DynamicBatcher]


@pytest.fixture
async def make_batcher() -> AsyncIterator[MakeBatcher]:
    """Returns a function that makes batchers over fake sessions. At the end of the test, all must drain."""
    made: list[DynamicBatcher] = []

    def make(
        *sessions: FakeSession, clock: FakeClock | None = None, queue: QueuePolicy | None = None, **policy: Any
    ) -> DynamicBatcher:
        instances = [ModelInstance(session, f"test-{index}") for index, session in enumerate(sessions)]
        policy.setdefault("max_batch_size", 4)
        clocks: dict[str, Any] = {} if clock is None else {"clock": clock}
        made.append(DynamicBatcher(BatchPolicy(queue=queue or QueuePolicy(), **policy), instances, **clocks))
        return made[-1]

    yield make
    for batcher in made:
        await asyncio.wait_for(batcher.close(), HANG_S)
        assert "queued=0 admitted=0 running=0" in repr(batcher)


def submit(
    batcher: DynamicBatcher, *values: float, priority: int = 0, deadline_ns: int | None = None, timeout_us: int = 0
) -> asyncio.Task[BatchResult]:
    rows = np.array(values, np.float64).reshape(-1, 1)
    return asyncio.create_task(batcher.submit(rows, batcher.reserve(len(rows), priority), deadline_ns, timeout_us))


async def entered(session: FakeSession) -> None:
    """Waits until the session has begun a run."""
    await asyncio.to_thread(session.entered.acquire, timeout=HANG_S)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def outcome(task: Awaitable[BatchResult]) -> list[float]:
    result = await asyncio.wait_for(task, HANG_S)
    return [float(value) for value in result.outputs[0][:, 0]]


async def test_each_entry_gets_its_own_rows(make_batcher: MakeBatcher) -> None:
    session = FakeSession(held=True)
    batcher = make_batcher(session, max_batch_size=8)
    first = submit(batcher, 1)
    await entered(session)
    others = [submit(batcher, 2, 3), submit(batcher, 4), submit(batcher, 5, 6, 7)]
    await settle()
    session.let(2)
    assert await outcome(first) == [1]
    assert [await outcome(task) for task in others] == [[2, 3], [4], [5, 6, 7]]
    assert session.sizes == [1, 6]
    assert (await others[0]).batch_size == 6


async def test_arrivals_of_one_turn_share_a_batch(make_batcher: MakeBatcher) -> None:
    session = FakeSession()
    batcher = make_batcher(session)
    assert [await outcome(task) for task in [submit(batcher, 1), submit(batcher, 2)]] == [[1], [2]]
    assert session.sizes == [2]


async def test_entries_are_not_split(make_batcher: MakeBatcher) -> None:
    session = FakeSession()
    batcher = make_batcher(session, max_batch_size=4)
    tasks = [submit(batcher, 1, 2, 3), submit(batcher, 4, 5), submit(batcher, 6)]
    assert [await outcome(task) for task in tasks] == [[1, 2, 3], [4, 5], [6]]
    assert session.sizes == [3, 3]


@pytest.mark.parametrize("when", ["queued", "running"])
async def test_cancelling_one_of_four_leaves_the_others(make_batcher: MakeBatcher, when: str) -> None:
    session = FakeSession(held=True)
    batcher = make_batcher(session)
    blocker = submit(batcher, 0)
    await entered(session)
    four = [submit(batcher, value) for value in (1, 2, 3, 4)]
    await settle()
    if when == "running":
        session.let()
        await entered(session)
    four[1].cancel()
    await settle()
    session.let(2)
    assert await outcome(blocker) == [0]
    assert [await outcome(four[i]) for i in (0, 2, 3)] == [[1], [3], [4]]
    assert four[1].cancelled()
    # A cancelled request that is queued is not computed. One that is running is part of its batch already.
    assert session.sizes == [1, 3 if when == "queued" else 4]


async def test_a_failing_run_fails_its_batch_only(make_batcher: MakeBatcher) -> None:
    session = FakeSession(held=True)
    batcher = make_batcher(session)
    first = [submit(batcher, 1), submit(batcher, 2)]
    await entered(session)
    session.failures.append(RuntimeError("boom"))
    later = submit(batcher, 3)
    await settle()
    session.let(2)
    for task in first:
        with pytest.raises(InferenceFailed):
            await task
    assert await outcome(later) == [3]


async def test_expired_while_queued_costs_no_run(make_batcher: MakeBatcher) -> None:
    session = FakeSession(held=True)
    clock = FakeClock()
    batcher = make_batcher(session, clock=clock)
    blocker = submit(batcher, 1)
    await entered(session)
    expiring = submit(batcher, 2, deadline_ns=clock() + 20_000_000)
    patient = submit(batcher, 3)
    with pytest.raises(DeadlineExceeded):
        await asyncio.wait_for(expiring, HANG_S)
    session.let(2)
    assert (await outcome(blocker), await outcome(patient)) == ([1], [3])
    assert session.sizes == [1, 1]


async def test_expired_between_timer_and_dispatch_is_not_run(make_batcher: MakeBatcher) -> None:
    session = FakeSession(held=True)
    clock = FakeClock()
    batcher = make_batcher(session, clock=clock)
    blocker = submit(batcher, 1)
    await entered(session)
    # The timer waits an hour by the loop's clock, so only the check at dispatch can see that the deadline has passed.
    expired = submit(batcher, 2, deadline_ns=clock() + 3_600_000_000_000)
    await settle()
    clock.advance_us(3_600_000_001)
    session.let()
    assert await outcome(blocker) == [1]
    with pytest.raises(DeadlineExceeded):
        await asyncio.wait_for(expired, HANG_S)
    assert session.sizes == [1]


async def test_the_configs_timeout_counts_without_a_deadline(make_batcher: MakeBatcher) -> None:
    session = FakeSession(held=True)
    batcher = make_batcher(session, queue=QueuePolicy(default_timeout_us=20_000))
    blocker = submit(batcher, 1)
    await entered(session)
    with pytest.raises(DeadlineExceeded):
        await asyncio.wait_for(submit(batcher, 2), HANG_S)
    session.let()
    assert await outcome(blocker) == [1]


async def test_full_queue_refuses_at_once_and_recovers(make_batcher: MakeBatcher) -> None:
    session = FakeSession(held=True)
    batcher = make_batcher(session, queue=QueuePolicy(max_queue_size=3))
    running = submit(batcher, 0)
    await entered(session)
    waiting = submit(batcher, 1, 2)
    await settle()
    with pytest.raises(QueueFull) as caught:
        batcher.reserve(2)
    assert caught.value.retry_after_ms >= 1
    last = submit(batcher, 3)
    await settle()
    session.let(2)
    assert [await outcome(task) for task in (running, waiting, last)] == [[0], [1, 2], [3]]
    batcher.reserve(3).release()


async def test_more_than_the_queue_can_ever_hold_is_invalid(make_batcher: MakeBatcher) -> None:
    batcher = make_batcher(FakeSession(), queue=QueuePolicy(max_queue_size=3))
    with pytest.raises(InvalidInput, match="the request has 4 images, the model's queue holds at most 3"):
        batcher.reserve(4)


async def test_the_delay_counts_from_the_oldest(make_batcher: MakeBatcher) -> None:
    session = FakeSession()
    clock = FakeClock()
    batcher = make_batcher(session, clock=clock, max_queue_delay_us=3_600_000_000)
    first = submit(batcher, 1)
    await settle()
    clock.advance_us(3_600_000_000)
    second = submit(batcher, 2)
    assert [await outcome(first), await outcome(second)] == [[1], [2]]
    assert session.sizes == [2]


async def test_a_deadline_before_the_end_of_the_delay_is_kept(make_batcher: MakeBatcher) -> None:
    batcher = make_batcher(
        FakeSession(), max_queue_delay_us=3_600_000_000, queue=QueuePolicy(default_timeout_us=2_000_000)
    )
    assert await outcome(submit(batcher, 1)) == [1]


async def test_two_instances_run_at_once(make_batcher: MakeBatcher) -> None:
    sessions = FakeSession(held=True), FakeSession(held=True)
    batcher = make_batcher(*sessions, max_batch_size=1)
    tasks = [submit(batcher, 1), submit(batcher, 2)]
    for session in sessions:
        await entered(session)
    for session in sessions:
        session.let()
    assert [await outcome(task) for task in tasks] == [[1], [2]]


async def test_rows_of_another_shape_get_their_own_run(make_batcher: MakeBatcher) -> None:
    session = FakeSession()
    batcher = make_batcher(session)
    shapes = [(1, 2, 2), (1, 2, 2), (1, 3, 3)]
    tasks = [asyncio.create_task(batcher.submit(np.ones(shape), batcher.reserve(1))) for shape in shapes]
    assert [await outcome(task) for task in tasks] == [[4], [4], [9]]
    assert session.sizes == [2, 1]


async def test_close_answers_what_was_accepted_and_takes_nothing_new(make_batcher: MakeBatcher) -> None:
    session = FakeSession(held=True)
    batcher = make_batcher(session, max_batch_size=1)
    permit = batcher.reserve(1)
    accepted = [submit(batcher, 1), submit(batcher, 2)]
    await entered(session)
    closing = asyncio.create_task(batcher.close())
    await settle()
    with pytest.raises(ShuttingDown):
        batcher.reserve(1)
    # A request that was admitted before the close, and whose image is still being decoded, may still run.
    late = asyncio.create_task(batcher.submit(np.ones((1, 1)), permit))
    await settle()
    assert not closing.done()
    session.let(3)
    assert [await outcome(task) for task in [*accepted, late]] == [[1], [2], [1]]
    await asyncio.wait_for(closing, HANG_S)


async def test_what_cannot_be_answered_in_time_is_refused_and_the_rest_is_answered(make_batcher: MakeBatcher) -> None:
    session, clock = FakeSession(held=True), FakeClock()
    batcher = make_batcher(session, clock=clock, max_batch_size=2)
    batcher._batch_ns = 1e9  # a second for each run
    first = submit(batcher, 1, 1)
    await entered(session)
    waiting = [submit(batcher, number, number) for number in range(5)]
    await settle()
    batcher.refuse_late(3.5)
    await settle()
    # One run goes on, and two more end in time.
    assert [task.done() for task in waiting] == [False, False, True, True, True]
    for task in waiting[2:]:
        with pytest.raises(ShuttingDown, match="send it to another server"):
            await task
    session.let(3)
    assert [await outcome(task) for task in (first, *waiting[:2])] == [[1, 1], [0, 0], [1, 1]]
    assert batcher.waiting == 0


async def test_an_instance_keeps_no_batch_alive(make_batcher: MakeBatcher) -> None:
    batcher = make_batcher(FakeSession())
    await outcome(submit(batcher, 1))
    await settle()
    gc.collect()
    assert not [thing for thing in gc.get_objects() if type(thing).__name__ == "_Entry"]


async def test_priorities_leave_first_and_in_order_within_one(make_batcher: MakeBatcher) -> None:
    session = FakeSession(held=True)
    batcher = make_batcher(session, max_batch_size=1, priority_levels=3, default_priority=2)
    first = submit(batcher, 0)
    await entered(session)
    order: list[float] = []
    tasks = []
    for value, priority in ((31, 3), (21, 2), (11, 1), (22, 0), (12, 1), (23, 99)):
        tasks.append(submit(batcher, value, priority=priority))
        tasks[-1].add_done_callback(lambda task: order.append(float(task.result().outputs[0][0, 0])))
        await settle()
    session.let(7)
    await asyncio.gather(first, *tasks)
    assert order == [11, 12, 21, 22, 23, 31]


async def test_each_level_has_room_of_its_own(make_batcher: MakeBatcher) -> None:
    session = FakeSession(held=True)
    urgent = {1: QueuePolicy(max_queue_size=2)}
    batcher = make_batcher(session, priority_levels=2, default_priority=2, priority_queues=urgent)
    running = submit(batcher, 0)
    await entered(session)
    permits = [batcher.reserve(1, 1), batcher.reserve(1, 1)]
    with pytest.raises(QueueFull):
        batcher.reserve(1, 1)
    permits.append(batcher.reserve(100, 2))
    for permit in permits:
        permit.release()
    session.let()
    await running


async def test_a_delayed_entry_waits_behind_all_others_but_is_answered(make_batcher: MakeBatcher) -> None:
    session = FakeSession(held=True)
    policy = QueuePolicy(default_timeout_us=20_000, delay_expired=True)
    batcher = make_batcher(session, max_batch_size=1, queue=policy)
    running = submit(batcher, 0)
    await entered(session)
    order: list[float] = []
    late = submit(batcher, 1)
    await asyncio.sleep(0.05)
    fresh = submit(batcher, 2)
    for task in (late, fresh):
        task.add_done_callback(lambda task: order.append(float(task.result().outputs[0][0, 0])))
    await settle()
    session.let(3)
    await asyncio.gather(running, late, fresh)
    assert order == [2, 1]


@pytest.mark.parametrize("allowed", [True, False])
async def test_a_requests_own_timeout_counts_where_it_may(make_batcher: MakeBatcher, allowed: bool) -> None:
    session = FakeSession(held=True)
    batcher = make_batcher(session, queue=QueuePolicy(timeout_override=allowed))
    running = submit(batcher, 0)
    await entered(session)
    hasty = submit(batcher, 1, timeout_us=10_000)
    done, _ = await asyncio.wait([hasty], timeout=0.1)
    session.let(2)
    assert bool(done) is allowed
    if allowed:
        with pytest.raises(DeadlineExceeded):
            await hasty
    else:
        assert await outcome(hasty) == [1]
    assert await outcome(running) == [0]


@pytest.mark.parametrize("preserve", [True, False])
async def test_preserved_ordering_holds_back_the_faster_instance(make_batcher: MakeBatcher, preserve: bool) -> None:
    slow, fast = FakeSession(held=True), FakeSession(held=True)
    batcher = make_batcher(fast, slow, max_batch_size=1, preserve_ordering=preserve)
    first = submit(batcher, 1)
    await entered(slow)
    second = submit(batcher, 2)
    await entered(fast)
    fast.let()
    done, _ = await asyncio.wait([second], timeout=0.2)
    assert bool(done) is not preserve
    slow.let()
    assert (await outcome(first), await outcome(second)) == ([1], [2])


async def test_what_leaves_the_queue_can_make_room_for_a_full_batch(make_batcher: MakeBatcher) -> None:
    """If a large entry at the front is cancelled, the entries behind it must not wait for the delay."""
    session = FakeSession()
    batcher = make_batcher(session, max_batch_size=6, preferred_batch_sizes=(2,), max_queue_delay_us=3_600_000_000)
    large = submit(batcher, 1, 2, 3)
    await settle()
    small = [submit(batcher, 4), submit(batcher, 5)]
    await settle()
    large.cancel()
    assert [await outcome(task) for task in small] == [[4], [5]]


async def test_what_goes_last_waits_for_every_priority_and_for_later_requests(make_batcher: MakeBatcher) -> None:
    session = FakeSession(held=True)
    delayed = QueuePolicy(default_timeout_us=1000, delay_expired=True)
    batcher = make_batcher(session, max_batch_size=1, priority_levels=2, default_priority=2, queue=delayed)
    first = submit(batcher, 0)
    await entered(session)
    order: list[float] = []
    tasks = [asyncio.create_task(batcher.submit(np.array([[9.0]]), batcher.reserve(1, 1), last=True))]
    await settle()
    tasks += [submit(batcher, 2, priority=2), submit(batcher, 1, priority=1)]
    for task in tasks:
        task.add_done_callback(lambda done: order.append(float(done.result().outputs[0][0, 0])))
    await settle()
    session.let(4)
    await asyncio.gather(first, *tasks)
    # On a busy machine the others are demoted meanwhile; they go first nevertheless.
    assert order in ([1, 2, 9], [2, 1, 9])


async def test_what_goes_last_can_be_cancelled(make_batcher: MakeBatcher) -> None:
    session = FakeSession(held=True)
    batcher = make_batcher(session)
    first = submit(batcher, 0)
    await entered(session)
    last = asyncio.create_task(batcher.submit(np.array([[9.0]]), batcher.reserve(1), last=True))
    await settle()
    last.cancel()
    await settle()
    assert "queued=0" in repr(batcher)
    session.let()
    await first
