"""The decision to dispatch or to wait, as tables and as properties."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnserve.batching.policy import BatchPolicy, Dispatch, QueuePolicy, Wait, next_action

US = 1000


@dataclass(frozen=True)
class Entry:
    size: int
    arrived_ns: int
    deadline_ns: int | None = None


def queue(*sizes: int, arrived_us: int = 0) -> list[Entry]:
    return [Entry(size, arrived_us * US) for size in sizes]


@pytest.mark.parametrize(
    ("policy", "sizes", "now_us", "expected"),
    [
        (BatchPolicy(8), [], 0, Wait(None)),
        (BatchPolicy(8), [1], 0, Dispatch(1)),
        (BatchPolicy(8), [1, 2, 3], 0, Dispatch(3)),
        # An entry that does not fit is not split and closes the batch, even if a later entry would fit.
        (BatchPolicy(8), [5, 4, 1], 0, Dispatch(1)),
        (BatchPolicy(8), [8, 1], 0, Dispatch(1)),
        # With a delay, a batch is dispatched only if it is full or the oldest entry has waited long enough.
        (BatchPolicy(8, max_queue_delay_us=100), [1, 2], 50, Wait(100 * US)),
        (BatchPolicy(8, max_queue_delay_us=100), [1, 2], 100, Dispatch(2)),
        (BatchPolicy(8, max_queue_delay_us=100), [4, 4, 1], 0, Dispatch(2)),
        (BatchPolicy(8, max_queue_delay_us=100), [5, 4], 0, Dispatch(1)),
        # The largest preferred size that is possible is dispatched at once. If none is possible, the entries wait.
        (BatchPolicy(8, (2, 4), 100), [1, 1, 1, 1, 1], 0, Dispatch(4)),
        (BatchPolicy(8, (2, 4), 100), [1, 1, 1], 0, Dispatch(2)),
        (BatchPolicy(8, (4,), 100), [1, 1, 1], 0, Wait(100 * US)),
        (BatchPolicy(8, (4,), 100), [1, 1, 1], 100, Dispatch(3)),
        (BatchPolicy(8, (4,), 100), [3, 3], 0, Wait(100 * US)),
    ],
)
def test_decision(policy: BatchPolicy, sizes: list[int], now_us: int, expected: Dispatch | Wait) -> None:
    assert next_action(policy, queue(*sizes), now_us * US) == expected


@given(
    st.lists(st.integers(1, 16), max_size=20),
    st.integers(1, 16),
    st.sets(st.integers(1, 16)),
    st.integers(0, 1000),
    st.integers(0, 2000),
)
def test_never_too_large_and_never_waits_without_a_reason(
    sizes: list[int], largest: int, preferred: set[int], delay_us: int, now_us: int
) -> None:
    sizes = [min(size, largest) for size in sizes]
    policy = BatchPolicy(largest, tuple(size for size in preferred if size <= largest), delay_us)
    action = next_action(policy, queue(*sizes), now_us * US)
    if isinstance(action, Dispatch):
        assert 1 <= action.count <= len(sizes)
        assert sum(sizes[: action.count]) <= largest
    elif sizes:
        assert action.until_ns == delay_us * US > now_us * US
        assert sum(sizes) not in policy.preferred_batch_sizes
    else:
        assert action == Wait(None)


def test_the_delay_never_outlives_a_deadline() -> None:
    policy = BatchPolicy(8, max_queue_delay_us=1000)
    waiting = [Entry(1, 0), Entry(1, 100 * US, 300 * US)]
    assert next_action(policy, waiting, 150 * US) == Wait(200 * US)
    assert next_action(policy, waiting, 200 * US) == Dispatch(2)


def test_a_hold_keeps_what_could_still_grow() -> None:
    assert next_action(BatchPolicy(8), queue(1, 2), 0, hold_until_ns=5 * US) == Wait(5 * US)
    assert next_action(BatchPolicy(8), queue(1, 2), 5 * US, hold_until_ns=5 * US) == Dispatch(2)
    assert next_action(BatchPolicy(8), queue(4, 4), 0, hold_until_ns=5 * US) == Dispatch(2)
    assert next_action(BatchPolicy(8), [Entry(1, 0, deadline_ns=4 * US)], 0, hold_until_ns=5 * US) == Wait(2 * US)


def test_what_is_too_large_for_any_batch_does_not_block_the_queue() -> None:
    assert next_action(BatchPolicy(4), queue(5, 1), 0) == Dispatch(1)


def test_the_oldest_counts_even_behind_a_higher_priority() -> None:
    policy = BatchPolicy(8, max_queue_delay_us=100)
    assert next_action(policy, [Entry(1, 50 * US), Entry(1, 0)], 60 * US) == Wait(100 * US)


@pytest.mark.parametrize(("priority", "level"), [(0, 2), (1, 1), (3, 3), (4, 2), (-1, 2)])
def test_a_priority_that_is_no_level_is_the_default(priority: int, level: int) -> None:
    assert BatchPolicy(8, priority_levels=3, default_priority=2).level(priority) == level


def test_each_level_may_have_its_own_queue_policy() -> None:
    own = QueuePolicy(max_queue_size=7)
    policy = BatchPolicy(8, priority_levels=2, priority_queues={2: own})
    assert (policy.queue_policy(1), policy.queue_policy(2)) == (policy.queue, own)


def test_the_earliest_deadline_counts_wherever_it_stands() -> None:
    policy = BatchPolicy(8, max_queue_delay_us=1000)
    hasty, patient = Entry(1, 0, 100 * US), Entry(1, 0, 900 * US)
    assert next_action(policy, [hasty, patient], 0) == Wait(50 * US)
    assert next_action(policy, [patient, hasty], 0) == Wait(50 * US)
    assert next_action(policy, [hasty, patient], 50 * US) == Dispatch(2)
