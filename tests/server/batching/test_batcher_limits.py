"""Timeouts, room in the queue, and the hint that a refused client gets: how long to wait before it asks again."""

import asyncio
import time

import numpy as np
import pytest

from cnnserve.batching.batcher import DynamicBatcher
from cnnserve.batching.instance import ModelInstance
from cnnserve.batching.policy import BatchPolicy, QueuePolicy
from cnnserve.errors import DeadlineExceeded, InvalidInput, QueueFull
from fakes import FakeClock, FakeSession
from support import HANG_S

HOUR_US = 3_600_000_000


def make(*sessions: FakeSession, clock: FakeClock | None = None, size: int = 4, **queue: object) -> DynamicBatcher:
    policy = BatchPolicy(size, queue=QueuePolicy(**queue))  # type: ignore[arg-type]
    instances = [ModelInstance(session, f"limits-{number}") for number, session in enumerate(sessions)]
    return DynamicBatcher(policy, instances, clock or time.monotonic_ns)


def row() -> np.ndarray:
    return np.ones((1, 2))


async def entered(session: FakeSession) -> None:
    assert await asyncio.to_thread(session.entered.acquire, timeout=HANG_S)


def hint(batcher: DynamicBatcher, size: int = 1) -> int:
    with pytest.raises(QueueFull) as caught:
        batcher.reserve(size)
    return caught.value.retry_after_ms


@pytest.mark.parametrize("own_us", [HOUR_US, 20_001])
async def test_a_request_cannot_wait_longer_than_the_model_lets_it(own_us: int) -> None:
    session, clock = FakeSession(held=True), FakeClock()
    batcher = make(session, clock=clock, default_timeout_us=20_000, timeout_override=True)
    running = asyncio.create_task(batcher.submit(row(), batcher.reserve(1)))
    await entered(session)
    patient = asyncio.create_task(batcher.submit(row(), batcher.reserve(1), timeout_us=own_us))
    await asyncio.sleep(0)
    clock.advance_us(20_000)
    session.let()
    await running
    with pytest.raises(DeadlineExceeded):
        await asyncio.wait_for(patient, HANG_S)
    assert session.sizes == [1]
    await asyncio.wait_for(batcher.close(), HANG_S)


async def test_a_request_may_wait_less_than_the_model_lets_it() -> None:
    session, clock = FakeSession(held=True), FakeClock()
    batcher = make(session, clock=clock, default_timeout_us=HOUR_US, timeout_override=True)
    running = asyncio.create_task(batcher.submit(row(), batcher.reserve(1)))
    await entered(session)
    hasty = asyncio.create_task(batcher.submit(row(), batcher.reserve(1), timeout_us=HOUR_US // 2))
    others = asyncio.create_task(batcher.submit(row(), batcher.reserve(1)))
    await asyncio.sleep(0)
    clock.advance_us(HOUR_US // 2)
    session.let(2)
    await asyncio.gather(running, others)
    with pytest.raises(DeadlineExceeded):
        await asyncio.wait_for(hasty, HANG_S)
    await asyncio.wait_for(batcher.close(), HANG_S)


@pytest.mark.parametrize(("model_us", "own_us"), [(20_000, 0), (0, 20_000), (20_000, HOUR_US)])
async def test_the_deadline_counts_beside_a_timeout(model_us: int, own_us: int) -> None:
    session, clock = FakeSession(held=True), FakeClock()
    batcher = make(session, clock=clock, default_timeout_us=model_us, timeout_override=True)
    running = asyncio.create_task(batcher.submit(row(), batcher.reserve(1)))
    await entered(session)
    deadline_ns = clock() + 10_000_000
    late = asyncio.create_task(batcher.submit(row(), batcher.reserve(1), deadline_ns, own_us))
    await asyncio.sleep(0)
    clock.advance_us(10_000)
    session.let()
    await running
    with pytest.raises(DeadlineExceeded):
        await asyncio.wait_for(late, HANG_S)
    await asyncio.wait_for(batcher.close(), HANG_S)


@pytest.mark.parametrize(
    ("waiting", "size", "instances", "expected"),
    [(1, 4, 1, 1), (4, 4, 1, 1), (5, 4, 1, 2), (40, 4, 1, 10), (40, 4, 2, 5), (40, 1, 1, 40), (40, 4, 4, 3)],
)
async def test_the_hint_counts_the_runs_before_a_new_request(
    waiting: int, size: int, instances: int, expected: int
) -> None:
    """Before the first run, a run is taken to last a millisecond."""
    batcher = make(*(FakeSession() for _ in range(instances)), size=size, max_queue_size=waiting)
    permit = batcher.reserve(waiting)
    assert hint(batcher) == expected
    permit.release()
    await asyncio.wait_for(batcher.close(), HANG_S)


async def test_the_hint_follows_the_time_that_runs_take() -> None:
    session = FakeSession(held=True)
    batcher = make(session, size=1, max_queue_size=8)
    for _ in range(3):
        running = asyncio.create_task(batcher.submit(row(), batcher.reserve(1)))
        await entered(session)
        await asyncio.sleep(0.05)
        session.let()
        await running
    permit = batcher.reserve(8)
    # Three runs of 50 ms or more make half of it, smoothed: 1 + 49 x (1 - 0.8 ** 3) = 24.9 ms.
    assert hint(batcher) >= 8 * 24
    permit.release()
    await asyncio.wait_for(batcher.close(), HANG_S)


async def test_a_batch_that_is_not_full_takes_as_long_as_a_full_one() -> None:
    session = FakeSession(held=True)
    batcher = make(session, size=4, max_queue_size=4)
    running = asyncio.create_task(batcher.submit(row(), batcher.reserve(1)))
    await entered(session)
    await asyncio.sleep(0.05)
    session.let()
    await running
    hints = []
    for waiting in (1, 4):
        permit = batcher.reserve(waiting)
        hints.append(hint(batcher, 4))
        permit.release()
    assert hints[0] == hints[1] > 1
    await asyncio.wait_for(batcher.close(), HANG_S)


async def test_a_permit_that_shrinks_gives_back_the_difference_once() -> None:
    batcher = make(FakeSession(), max_queue_size=8)
    permit = batcher.reserve(8)
    hint(batcher)
    permit.shrink(3)
    batcher.reserve(5).release()
    hint(batcher, 6)
    permit.release()
    permit.release()
    permit.shrink(0)
    whole = batcher.reserve(8)
    hint(batcher)
    whole.release()
    with pytest.raises(InvalidInput):
        batcher.reserve(9)
    await asyncio.wait_for(batcher.close(), HANG_S)


def with_target(session: FakeSession, clock: FakeClock, run_ms: float, target_ms: float = 100) -> DynamicBatcher:
    """A batcher with a target, whose runs are known to take `run_ms` for each row."""
    policy = BatchPolicy(4, target_ms=target_ms)
    batcher = DynamicBatcher(policy, [ModelInstance(session, "target")], clock)
    for size in (1, 2, 4):
        batcher._limits.times.learn(size, round(size * run_ms * 1e6))
    return batcher


async def test_a_request_that_cannot_meet_the_target_is_refused_when_it_arrives() -> None:
    session, clock = FakeSession(held=True), FakeClock()
    batcher = with_target(session, clock, 30)
    running = asyncio.create_task(batcher.submit(row(), batcher.reserve(1)))
    await entered(session)
    second = asyncio.create_task(batcher.submit(row(), batcher.reserve(1)))
    await asyncio.sleep(0)
    # The run ends in 30 ms; three rows need 90 ms more.
    with pytest.raises(QueueFull, match="cannot be answered within the model's target of 100 ms"):
        await batcher.submit(np.ones((2, 2)), batcher.reserve(2))
    with pytest.raises(DeadlineExceeded, match="before the request's run ends"):
        await batcher.submit(row(), batcher.reserve(1), clock.now_ns + 50_000_000)
    assert "queued=1 admitted=1" in repr(batcher)
    session.let(2)
    await asyncio.wait_for(asyncio.gather(running, second), HANG_S)
    await asyncio.wait_for(batcher.close(), HANG_S)


async def test_a_request_that_can_no_longer_meet_the_target_is_not_computed() -> None:
    session, clock = FakeSession(held=True), FakeClock()
    batcher = with_target(session, clock, 30)
    running = asyncio.create_task(batcher.submit(row(), batcher.reserve(1)))
    await entered(session)
    late = asyncio.create_task(batcher.submit(row(), batcher.reserve(1)))
    await asyncio.sleep(0)
    clock.advance_us(80_000)
    session.let()
    await asyncio.wait_for(running, HANG_S)
    with pytest.raises(QueueFull, match="target of 100 ms"):
        await asyncio.wait_for(late, HANG_S)
    assert session.sizes == [1]
    await asyncio.wait_for(batcher.close(), HANG_S)


async def test_a_refusal_through_callbacks_gives_its_places_back() -> None:
    session, clock = FakeSession(held=True), FakeClock()
    batcher = with_target(session, clock, 30)
    running = asyncio.create_task(batcher.submit(row(), batcher.reserve(1)))
    await entered(session)
    with pytest.raises(QueueFull):
        batcher.enqueue(np.ones((3, 2)), batcher.reserve(3), lambda _: None)
    assert "queued=0 admitted=0" in repr(batcher)
    session.let()
    await asyncio.wait_for(running, HANG_S)
    await asyncio.wait_for(batcher.close(), HANG_S)


async def test_images_that_cannot_meet_the_target_are_not_decoded() -> None:
    session, clock = FakeSession(held=True), FakeClock()
    batcher = with_target(session, clock, 30)
    running = asyncio.create_task(batcher.submit(row(), batcher.reserve(1)))
    await entered(session)
    # The run ends in 30 ms; three rows need 90 ms more, and the target counts from the end of the decoding.
    with batcher.reserve(3) as permit:
        with pytest.raises(QueueFull, match="cannot be answered within the model's target of 100 ms"):
            batcher.check_time(permit, None, 0)
        batcher.check_time(permit, None, 30_000_000)
    with batcher.reserve(1) as permit:
        with pytest.raises(DeadlineExceeded, match="before the request's run ends"):
            batcher.check_time(permit, clock() + 50_000_000, 0)
        batcher.check_time(permit, clock() + 61_000_000, 0)
    session.let()
    await asyncio.wait_for(running, HANG_S)
    await asyncio.wait_for(batcher.close(), HANG_S)


async def test_images_that_are_being_decoded_go_before_others_but_not_before_tensors() -> None:
    session, clock = FakeSession(held=True), FakeClock()
    batcher = with_target(session, clock, 30, target_ms=0)
    running = asyncio.create_task(batcher.submit(row(), batcher.reserve(1)))
    await entered(session)
    deadline_ns = clock() + 100_000_000
    with batcher.reserve(2), batcher.reserve(1) as permit:
        with pytest.raises(DeadlineExceeded, match="before the request's run ends"):
            batcher.check_time(permit, deadline_ns, 0)
        batcher.check_time(permit, deadline_ns + 21_000_000, 0)
        batcher.check_time(permit, None, 0)
        tensor = asyncio.create_task(batcher.submit(row(), batcher.reserve(1), deadline_ns))
        await asyncio.sleep(0)
    session.let(2)
    await asyncio.wait_for(asyncio.gather(running, tensor), HANG_S)
    await asyncio.wait_for(batcher.close(), HANG_S)


async def test_a_deadline_that_cannot_be_met_is_refused_when_the_request_arrives() -> None:
    session, clock = FakeSession(held=True), FakeClock()
    batcher = with_target(session, clock, 30, target_ms=0)
    running = asyncio.create_task(batcher.submit(row(), batcher.reserve(1)))
    await entered(session)
    with pytest.raises(DeadlineExceeded, match="before the request's run ends"):
        await batcher.submit(row(), batcher.reserve(1), clock() + 59_000_000)
    # A run alone takes longer than this: the estimate may be wrong, and is not followed.
    hasty = asyncio.create_task(batcher.submit(row(), batcher.reserve(1), clock() + 29_000_000))
    await asyncio.sleep(0)
    assert "queued=1 admitted=1" in repr(batcher)
    session.let(2)
    await asyncio.wait_for(asyncio.gather(running, hasty), HANG_S)
    await asyncio.wait_for(batcher.close(), HANG_S)


async def test_a_request_does_not_wait_for_those_that_go_last() -> None:
    session, clock = FakeSession(held=True), FakeClock()
    batcher = with_target(session, clock, 30)
    tasks = [asyncio.create_task(batcher.submit(row(), batcher.reserve(1)))]
    await entered(session)
    tasks += [asyncio.create_task(batcher.submit(row(), batcher.reserve(1), last=True)) for _ in range(2)]
    await asyncio.sleep(0)
    tasks.append(asyncio.create_task(batcher.submit(row(), batcher.reserve(1))))
    await asyncio.sleep(0)
    assert "queued=3" in repr(batcher)
    session.let(4)
    await asyncio.wait_for(asyncio.gather(*tasks), HANG_S)
    await asyncio.wait_for(batcher.close(), HANG_S)
