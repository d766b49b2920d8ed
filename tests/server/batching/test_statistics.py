"""What is counted of requests and runs, and under which reason."""

import asyncio
import time

import pytest

from cnnserve.batching.statistics import BOUNDS_NS, REASONS, Duration, Histogram, Statistics, Steps
from cnnserve.errors import DeadlineExceeded, InferenceFailed, InvalidInput, QueueFull, ShuttingDown


def test_durations_are_counted_and_added() -> None:
    duration = Duration()
    for ns in (5, 7, 0):
        duration.add(ns)
    assert duration == Duration(3, 12)


def test_a_duration_is_never_less_than_nothing() -> None:
    duration = Duration()
    duration.add(-3)
    duration.add(1)
    assert duration == Duration(2, 1)


def test_each_step_has_its_own_duration() -> None:
    steps = Steps()
    steps.add(1, 20, 300)
    steps.add(2, 30, 400)
    assert (steps.compute_input, steps.compute_infer, steps.compute_output) == (
        Duration(2, 3),
        Duration(2, 50),
        Duration(2, 700),
    )


def test_bounds_ascend_and_are_round_times() -> None:
    assert sorted(set(BOUNDS_NS)) == list(BOUNDS_NS)
    assert (BOUNDS_NS[0], BOUNDS_NS[-1]) == (250_000, 10_000_000_000)


@pytest.mark.parametrize("bound", range(len(BOUNDS_NS)))
def test_a_bucket_ends_with_its_bound(bound: int) -> None:
    histogram = Histogram()
    histogram.add(BOUNDS_NS[bound])
    histogram.add(BOUNDS_NS[bound] + 1)
    counts = [0] * (len(BOUNDS_NS) + 1)
    counts[bound], counts[bound + 1] = 1, 1
    assert histogram.counts == counts
    assert histogram.total_ns == 2 * BOUNDS_NS[bound] + 1


def test_new_statistics_have_counted_nothing() -> None:
    statistics = Statistics()
    assert (statistics.inferences, statistics.executions, statistics.last_inference_ms) == (0, 0, 0)
    assert statistics.failures == dict.fromkeys(REASONS, 0)
    assert not statistics.batches
    assert not any(statistics.latencies.request.counts)
    assert statistics.latencies.request.total_ns == 0


def test_a_run_counts_once_for_its_batch_size() -> None:
    statistics = Statistics()
    before_ms = time.time_ns() // 10**6
    statistics.ran(3, input_ns=1, infer_ns=20, output_ns=300)
    statistics.ran(3, input_ns=1, infer_ns=20, output_ns=300)
    statistics.ran(1, input_ns=5, infer_ns=6, output_ns=7)
    assert statistics.executions == 3
    assert before_ms <= statistics.last_inference_ms <= time.time_ns() // 10**6
    assert {size: steps.compute_infer for size, steps in statistics.batches.items()} == {
        3: Duration(2, 40),
        1: Duration(1, 6),
    }
    assert (statistics.batches[1].compute_input.ns, statistics.batches[1].compute_output.ns) == (5, 7)
    # Requests are counted when they are answered.
    assert statistics.inferences == statistics.success.count == 0


MS = 10**6


@pytest.mark.parametrize(("preprocess_ns", "read"), [(40 * MS, 1), (0, 1), (None, 0)])
def test_an_answered_request_counts_with_all_its_times(preprocess_ns: int | None, read: int) -> None:
    statistics = Statistics()
    statistics.answered(
        4, total_ns=100 * MS, queue_ns=3 * MS, preprocess_ns=preprocess_ns, steps_ns=(MS, 20 * MS, 2 * MS)
    )
    assert (statistics.inferences, statistics.success, statistics.queue) == (
        4,
        Duration(1, 100 * MS),
        Duration(1, 3 * MS),
    )
    # Reading images is part of making the input, as in Triton.
    assert statistics.steps == Steps(Duration(1, MS + (preprocess_ns or 0)), Duration(1, 20 * MS), Duration(1, 2 * MS))
    latencies = statistics.latencies
    assert [h.total_ns for h in (latencies.request, latencies.queue, latencies.compute)] == [100 * MS, 3 * MS, 21 * MS]
    assert (latencies.preprocessing.total_ns, sum(latencies.preprocessing.counts)) == (preprocess_ns or 0, read)
    assert statistics.executions == 0


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (QueueFull("full", 1), "REJECTED"),
        (DeadlineExceeded(), "REJECTED"),
        (ShuttingDown(), "REJECTED"),
        (asyncio.CancelledError(), "CANCELED"),
        (InferenceFailed(), "BACKEND"),
        (InvalidInput(), "OTHER"),
        (ValueError(), "OTHER"),
    ],
)
def test_a_failure_counts_under_its_reason_and_goes_on(error: BaseException, reason: str) -> None:
    statistics = Statistics()
    started_ns = time.monotonic_ns() - 5 * MS
    with pytest.raises(type(error)), statistics.counting_failure(started_ns):
        raise error
    assert statistics.failures == dict.fromkeys(REASONS, 0) | {reason: 1}
    assert statistics.fail.count == 1
    assert 5 * MS <= statistics.fail.ns <= time.monotonic_ns() - started_ns
    statistics.failed(error, started_ns)
    assert statistics.failures[reason] == statistics.fail.count == 2


def test_what_succeeds_is_no_failure() -> None:
    statistics = Statistics()
    with statistics.counting_failure(0):
        pass
    assert statistics.fail == Duration()


def test_all_counts_add_up() -> None:
    histogram = Histogram()
    histogram.add(1)
    histogram.add(2)
    assert (histogram.counts[0], histogram.total_ns) == (2, 3)
    statistics = Statistics()
    for images in (4, 3):
        statistics.answered(images, total_ns=1, queue_ns=1, preprocess_ns=None, steps_ns=(1, 1, 1))
    assert (statistics.inferences, statistics.success.count) == (7, 2)
