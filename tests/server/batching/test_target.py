"""The latency target: as rules, and in simulated time against fixed settings."""

import itertools
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnserve.batching.policy import NEVER_NS, BatchPolicy, Dispatch, Wait, next_action
from cnnserve.batching.run_times import RunTimes
from cnnserve.batching.target import Target
from simulated import Outcome, Queue, Request, poisson

MS = 1_000_000


def learned(target_ms: float, fixed_ms: float, row_ms: float, max_batch: int = 32) -> Target:
    """A target whose times are those of runs without noise."""
    target = Target(target_ms, max_batch)
    for _ in range(8):
        for size in (1, max_batch):
            target.times.learn(size, round((fixed_ms + row_ms * size) * MS))
    return target


def test_before_the_first_run_everything_is_possible() -> None:
    target = Target(10, 8)
    assert target.run_ns(8) == 0
    assert target.full_batch() == 8
    assert not target.is_hopeless(Request(0), 1000, 1, 0)


def test_the_largest_batch_that_meets_the_target_for_the_oldest() -> None:
    target = learned(100, 0, 10)
    requests = [Request(0), *(Request(60 * MS) for _ in range(20))]
    # 95 ms less the 60 that have passed: three rows of 10 ms.
    assert next_action(BatchPolicy(32), requests, 60 * MS, target=target) == Dispatch(3)
    assert next_action(BatchPolicy(32), requests[1:], 60 * MS, target=target) == Dispatch(9)


def test_a_deadline_before_the_target_counts() -> None:
    target = learned(100, 0, 10)
    requests = [Request(0, deadline_ns=45 * MS), *(Request(0) for _ in range(20))]
    assert next_action(BatchPolicy(32), requests, 0, target=target) == Dispatch(4)


def test_a_queue_delay_ends_before_the_target_is_missed() -> None:
    target = learned(100, 0, 10)
    policy = BatchPolicy(32, max_queue_delay_us=1_000_000)
    action = next_action(policy, [Request(0)], 0, target=target)
    assert isinstance(action, Wait)
    assert action.until_ns == pytest.approx(85 * MS, rel=0.01)
    assert next_action(policy, [Request(0)], action.until_ns or 0, target=target) == Dispatch(1)


def test_a_target_below_one_run_refuses_nothing() -> None:
    target = learned(5, 0, 10)
    assert target.due_ns(Request(0)) == NEVER_NS
    assert not target.is_too_late(Request(0), 1000 * MS, 1)
    assert target.full_batch() == 1


def test_a_full_batch_in_the_queue_passes_those_over_that_would_make_it_small() -> None:
    target = learned(200, 8, 7)
    full = target.full_batch()
    assert 2 * target.run_ns(full) <= 190 * MS < 2 * target.run_ns(full + 1)
    late = Request(0)
    assert not target.is_too_late(late, 120 * MS, full - 1)
    assert target.is_too_late(late, 120 * MS, full)


@given(st.lists(st.tuples(st.integers(1, 64), st.floats(0.5, 50)), min_size=1, max_size=200))
def test_times_are_positive_and_rise_with_the_size(runs: list[tuple[int, float]]) -> None:
    times = RunTimes()
    for size, ms in runs:
        times.learn(size, round(ms * MS))
    estimates = [times.longest(size) for size in range(1, 65)]
    assert all(0 < one <= other for one, other in itertools.pairwise(estimates))


@pytest.mark.parametrize(("fixed", "row"), [(8.0, 7.3), (0.0, 20.0), (3.0, 0.1)])
def test_times_come_near_those_of_the_model(fixed: float, row: float) -> None:
    chance, times = random.Random(7), RunTimes()
    for _ in range(300):
        size = chance.randint(1, 16)
        times.learn(size, round((fixed + row * size) * MS * chance.lognormvariate(0, 0.03)))
    for size in (1, 8, 16):
        assert times.usual(size) == pytest.approx((fixed + row * size) * MS, rel=0.15)


def test_times_follow_a_machine_that_becomes_slower_and_faster() -> None:
    times = RunTimes()
    for factor in (1, 3, 1):
        for number in range(400):
            times.learn(1 + number % 4, factor * (2 + number % 4) * MS)
        assert times.usual(4) == pytest.approx(factor * 5 * MS, rel=0.1)


def test_one_disturbed_run_counts_little() -> None:
    times = RunTimes()
    for number in range(100):
        times.learn(1 + number % 8, (1 + number % 8) * MS)
    times.learn(3, 3000 * MS)
    assert times.usual(8) < 1.3 * 8 * MS


def test_without_a_target_the_usual_time_counts() -> None:
    careful, usual = Target(100, 8), Target(0, 8)
    for number in range(100):
        for target in (careful, usual):
            target.times.learn(1, (8 + 4 * (number % 2)) * MS)
    assert usual.run_ns(1) == pytest.approx(10 * MS, rel=0.05)
    assert careful.run_ns(1) > 13 * MS
    assert usual.due_ns(Request(0)) == NEVER_NS


@given(
    st.sampled_from([0.0, 20.0, 200.0]),
    st.floats(0, 20),
    st.floats(0.1, 20),
    st.none() | st.integers(0, 300),
    st.integers(1, 4),
    st.integers(0, 8),
    st.integers(1, 64),
)
def test_what_is_safe_is_not_hopeless(
    target_ms: float, fixed: float, row: float, deadline_ms: int | None, instances: int, size: int, ahead: int
) -> None:
    target = learned(target_ms, fixed, row, max_batch=8)
    request = Request(0, max(1, size), None if deadline_ms is None else deadline_ms * MS)
    if target.is_safe(request, ahead + request.size + instances * 8):
        assert not target.is_hopeless(request, ahead + request.size, instances, target.run_ns(8))


def noisy(fixed_ms: float, row_ms: float) -> Callable[[int], int]:
    """Run times with 4 % of noise; one run in 200 takes twice as long."""
    chance = random.Random(2)

    def run_ns(size: int) -> int:
        disturbed = 2 if chance.random() < 0.005 else 1
        return round((fixed_ms + row_ms * size) * MS * chance.lognormvariate(0, 0.04) * disturbed)

    return run_ns


def outcome(load: float, target_ms: float, fixed_ms: float, row_ms: float, *, batch: int = 32) -> Outcome:
    """`load` counts in the rate of batches of 32; `target_ms` 0: fixed settings with batches of at most `batch`."""
    rate = load * 32 / (fixed_ms + row_ms * 32) * 1e3
    policy = BatchPolicy(batch, target_ms=target_ms)
    return Queue(policy, noisy(fixed_ms, row_ms)).serve(poisson(rate, 4000, 1))


# ResNet-18 and AlexNet on two cores, and a model on a GPU.
MODELS = pytest.mark.parametrize(
    ("fixed", "row", "target"), [(1.2, 20, 200), (8, 7.3, 200), (8, 7.3, 100), (3, 0.1, 20)]
)


@MODELS
@pytest.mark.parametrize("load", [1.05, 1.3, 2])
def test_more_answers_in_time_than_any_fixed_batch_above_the_knee(
    fixed: float, row: float, target: float, load: float
) -> None:
    own = outcome(load, target, fixed, row)
    best = max(outcome(load, 0, fixed, row, batch=batch).within(target * MS) for batch in (1, 4, 8, 16, 32))
    assert own.within(target * MS) > 1.2 * best
    # Of what it answers, nearly everything is in time.
    assert own.within(target * MS) >= 0.99 * len(own.latencies_ns)


@MODELS
def test_costs_nothing_below_the_knee(fixed: float, row: float, target: float) -> None:
    own, usual = (outcome(0.6, ms, fixed, row).within(target * MS) for ms in (target, 0.0))
    assert own >= 0.99 * usual


@pytest.mark.parametrize("load", [1.3, 2])
def test_keeps_the_throughput_of_batches_under_overload(load: float) -> None:
    served = outcome(load, 200, 8, 7.3)
    # Two runs fit into the target with batches of 11: 0.94 of what batches of 32 reach.
    assert sum(served.batches) / len(served.batches) > 8
    assert served.within(200 * MS) >= 0.88 * 4000 / load


def test_most_refusals_come_at_once() -> None:
    refused = outcome(2, 200, 1.2, 20).refused_after_ns
    assert sum(after == 0 for after in refused) > 0.5 * len(refused)


@given(st.integers(1, 4), st.floats(0.2, 3), st.integers(0, 99))
def test_every_request_is_answered_or_refused_once(instances: int, load: float, seed: int) -> None:
    arrivals = poisson(load * 100, 200, seed)
    result = Queue(BatchPolicy(8, target_ms=50), lambda size: (2 + 8 * size) * MS, instances).serve(arrivals)
    assert len(result.latencies_ns) + len(result.refused_after_ns) == 200


def test_a_request_behind_a_few_rows_is_tried_alone() -> None:
    target = learned(30, 0, 10)
    # 28.5 ms less the 18 that have passed are enough for one row, and not for two.
    assert not target.is_too_late(Request(0), 18 * MS, 1)


def test_rows_that_fill_part_of_a_run_take_a_whole_one() -> None:
    target = learned(100, 80, 1, max_batch=4)
    # One run of one row takes 81 ms.
    assert not target.is_hopeless(Request(0), 1, 1, 10 * MS)
    # Five rows take two runs: 95 ms are not enough.
    assert target.is_hopeless(Request(0), 5, 1, 0)
