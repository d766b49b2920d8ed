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
