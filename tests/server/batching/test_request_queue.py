"""The order in which entries leave the queue."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnserve.batching.request_queue import RequestQueue


@dataclass(eq=False)
class Entry:
    level: int


@given(st.lists(st.tuples(st.integers(1, 3), st.sampled_from(["stay", "demote", "remove"])), max_size=30))
def test_by_level_then_by_arrival_then_the_demoted(moves: list[tuple[int, str]]) -> None:
    queue: RequestQueue[Entry] = RequestQueue(3)
    entries = [Entry(level) for level, _ in moves]
    for entry in entries:
        queue.put(entry)
    staying = [entry for entry, (_, move) in zip(entries, moves, strict=True) if move == "stay"]
    demoted = [entry for entry, (_, move) in zip(entries, moves, strict=True) if move == "demote"]
    for entry, (_, move) in zip(entries, moves, strict=True):
        if move == "demote":
            queue.demote(entry)
        elif move == "remove":
            queue.remove(entry)
    expected = sorted(staying, key=lambda entry: entry.level) + demoted
    assert list(queue) == expected
    assert len(queue) == len(expected)
    assert bool(queue) is bool(expected)
    assert [queue.pop() for _ in range(len(queue))] == expected


def test_a_demoted_entry_can_still_be_withdrawn() -> None:
    queue: RequestQueue[Entry] = RequestQueue(1)
    entry = Entry(1)
    queue.put(entry)
    queue.demote(entry)
    queue.remove(entry)
    assert not queue
    with pytest.raises(ValueError, match="not in deque"):
        queue.remove(entry)


def test_an_empty_queue_has_no_next_entry() -> None:
    queue: RequestQueue[Entry] = RequestQueue(2)
    with pytest.raises(StopIteration):
        queue.head()
    with pytest.raises(IndexError):
        queue.pop()


def test_the_head_stays_until_it_is_popped() -> None:
    queue: RequestQueue[Entry] = RequestQueue(2)
    second, first = Entry(2), Entry(1)
    queue.put(second)
    queue.put(first)
    assert queue.head() is first
    assert queue.pop() is first
    assert queue.head() is second


@pytest.mark.parametrize("level", [1, 2, 3])
def test_the_demoted_leave_behind_those_who_come_later(level: int) -> None:
    queue: RequestQueue[Entry] = RequestQueue(3)
    demoted = Entry(level)
    queue.put(demoted)
    queue.demote(demoted)
    later = [Entry(3), Entry(2)]
    for entry in later:
        queue.put(entry)
    assert list(queue) == [later[1], later[0], demoted]
    queue.remove(demoted)
    assert list(queue) == [later[1], later[0]]


def test_the_last_stay_behind_what_is_demoted_later() -> None:
    queue: RequestQueue[Entry] = RequestQueue(2)
    last, removed, late, first = Entry(1), Entry(2), Entry(2), Entry(1)
    queue.put_last(last)
    queue.put_last(removed)
    queue.put(late)
    queue.put(first)
    queue.demote(late)
    queue.remove(removed)
    assert list(queue) == [first, late, last]
