"""The order in which jobs leave the fair queue. Time does not exist here: work is what jobs cost."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cnnserve.batching.fair_queue import FairQueue

Job = tuple[str, str, int]


def queue_of(*jobs: tuple[str, str, float]) -> FairQueue[Job]:
    """Returns a queue with jobs of (client, request, cost), in this order."""
    queue: FairQueue[Job] = FairQueue()
    for number, (client, request, cost) in enumerate(jobs):
        queue.put((client, request), cost, (client, request, number))
    return queue


def order(queue: FairQueue[Job]) -> list[str]:
    return ["".join(queue.pop()[:2]) for _ in range(len(queue))]


def test_clients_take_turns() -> None:
    queue = queue_of(*[("a", "1", 10)] * 4, *[("b", "1", 10)] * 2)
    assert order(queue) == ["a1", "b1", "a1", "b1", "a1", "a1"]


def test_many_requests_of_one_client_count_as_one_client() -> None:
    queue = queue_of(("a", "1", 10), ("a", "2", 10), ("a", "3", 10), ("b", "1", 10), ("b", "1", 10), ("b", "1", 10))
    assert order(queue) == ["a1", "b1", "a2", "b1", "a3", "b1"]


def test_requests_of_one_client_take_turns() -> None:
    queue = queue_of(*[("a", "1", 10)] * 3, ("a", "2", 10))
    assert order(queue) == ["a1", "a2", "a1", "a1"]


def test_a_small_job_leaves_before_large_ones_that_came_earlier() -> None:
    queue = queue_of(*[("a", "1", 100)] * 32)
    queue.pop()
    queue.put(("b", "1"), 1, ("b", "1", 0))
    assert queue.pop()[0] == "b"


def test_a_large_job_waits_for_as_much_work_as_it_costs_and_no_more() -> None:
    queue = queue_of(("a", "1", 10), ("b", "1", 1))
    small = 0
    while queue.pop()[0] == "b":
        small += 1
        queue.put(("b", "1"), 1, ("b", "1", small))
    assert 9 <= small <= 11


def test_who_was_away_has_saved_up_nothing() -> None:
    queue = queue_of(*[("a", "1", 10)] * 20)
    for _ in range(10):
        queue.pop()
    for number in range(10):
        queue.put(("b", "1"), 10, ("b", "1", number))
    assert order(queue)[:6] in (["a1", "b1"] * 3, ["b1", "a1"] * 3)


def test_work_beyond_the_estimate_is_charged() -> None:
    queue = queue_of(*[("a", "1", 10)] * 4, *[("b", "1", 10)] * 4)
    assert queue.pop()[0] == "a"
    queue.charge(("a", "1"), 30)
    assert order(queue) == ["b1"] * 4 + ["a1"] * 3


def test_a_charge_for_a_path_that_has_ended_changes_nothing() -> None:
    queue = queue_of(("b", "1", 10))
    queue.charge(("a", "1"), 30)
    assert order(queue) == ["b1"]


def test_a_request_can_be_removed() -> None:
    queue = queue_of(("a", "1", 10), ("a", "1", 10), ("a", "2", 10), ("b", "1", 10))
    assert queue.remove(("a", "1")) == [("a", "1", 0), ("a", "1", 1)]
    assert queue.remove(("a", "1")) == queue.remove(("c", "1")) == []
    assert order(queue) == ["a2", "b1"]


def test_an_empty_queue_has_no_job() -> None:
    with pytest.raises(IndexError):
        queue_of().pop()


PATHS = st.tuples(st.sampled_from("abc"), st.sampled_from("12"))
COSTS = st.integers(1, 50)


@given(st.lists(st.one_of(st.tuples(PATHS, COSTS), st.none(), PATHS.map(lambda path: (path, 0)))))
def test_every_job_leaves_once_and_in_the_order_of_its_request(steps: list[tuple[tuple[str, str], int] | None]) -> None:
    """A step puts a job (cost above 0), removes a request (cost 0) or takes a job (None)."""
    queue: FairQueue[Job] = FairQueue()
    waiting: dict[tuple[str, str], list[Job]] = {}
    for number, step in enumerate(steps):
        if step is None:
            if any(waiting.values()):
                job = queue.pop()
                assert waiting[job[0], job[1]].pop(0) == job
        else:
            path, cost = step
            if cost:
                waiting.setdefault(path, []).append((*path, number))
                queue.put(path, cost, (*path, number))
            else:
                assert queue.remove(path) == waiting.pop(path, [])
        assert len(queue) == sum(map(len, waiting.values()))
    while len(queue):
        job = queue.pop()
        assert waiting[job[0], job[1]].pop(0) == job
    assert not any(waiting.values())


@given(st.lists(COSTS, min_size=30, max_size=60), st.lists(COSTS, min_size=30, max_size=60), st.integers(1, 25))
def test_clients_that_always_wait_get_equal_work(one: list[int], other: list[int], pops: int) -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue()
    for name, costs in (("a", one), ("b", other)):
        for cost in costs:
            queue.put((name, "1"), cost, (name, cost))
    done = {"a": 0, "b": 0}
    for _ in range(pops):
        name, cost = queue.pop()
        done[name] += cost
    assert abs(done["a"] - done["b"]) <= max(*one, *other)


@given(
    st.dictionaries(st.sampled_from("bcdef"), st.lists(st.integers(5, 50), min_size=8, max_size=8), min_size=1),
    st.integers(0, 8),
)
@example({"b": [5] * 8, "c": [5] * 8}, 1)
def test_a_newcomer_waits_for_at_most_one_job_of_each_client(others: dict[str, list[int]], pops: int) -> None:
    """However much the others have sent: their jobs are not smaller than the newcomer's."""
    queue: FairQueue[str] = FairQueue()
    for name, costs in others.items():
        for number, cost in enumerate(costs):
            queue.put((name, str(number)), cost, name)
    for _ in range(pops):
        queue.pop()
    queue.put(("a", "1"), 5, "a")
    before: list[str] = []
    while (name := queue.pop()) != "a":
        before.append(name)
    assert len(before) == len(set(before))
