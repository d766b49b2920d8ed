"""The search on synthetic machines, against the best of all layouts."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnserve.model.layout_search import Axes, Goal, Measure, Measurement, OutOfBudget, Search, frontier, shapes
from cnnserve.model_config.layout import Layout

IN_FLIGHT = 16
BATCHES = (1, 2, 4, 8, 16)
DELAYS_US = (0, 1000, 4000)


def machine(budget: int, fixed_ms: float, row_ms: float, scaling: float, memory: float, noise: float = 0) -> Measure:
    """A machine of `budget` cores: a run of n threads is n**scaling times as fast; each instance slows the others."""
    chance = random.Random(5)

    def measure(layout: Layout) -> Measurement:
        wide = min(layout.threads, max(1, budget - layout.instances + 1) / layout.instances + 1, budget)
        slower = 1 + memory * (layout.instances - 1)
        rows = min(layout.batch, IN_FLIGHT / layout.instances)
        run_ms = slower * (fixed_ms + row_ms * rows / wide**scaling) + layout.delay_us / 1000 / max(1, rows)
        rate = 1000 * layout.instances * rows / run_ms * chance.lognormvariate(0, noise)
        p50_ms = 1000 * IN_FLIGHT / rate
        return Measurement(rate, p50_ms, p50_ms + run_ms)

    return measure


def every(axes: Axes) -> list[Layout]:
    return [Layout(*shape, batch, delay) for shape in axes.shapes for batch in axes.batches for delay in axes.delays_us]


MACHINES = {
    "budget": st.sampled_from([2, 4, 8, 16, 48]),
    "fixed_ms": st.floats(0.01, 10),
    "row_ms": st.floats(0.05, 50),
    "scaling": st.floats(0.3, 1),
    "memory": st.floats(0, 0.3),
}


@given(**MACHINES)
def test_at_least_097_of_the_best_in_a_quarter_of_the_measurements(
    budget: int, fixed_ms: float, row_ms: float, scaling: float, memory: float
) -> None:
    measure = machine(budget, fixed_ms, row_ms, scaling, memory)
    axes = Axes(shapes(budget), BATCHES, DELAYS_US)
    best = max(measure(layout).rate for layout in every(axes))
    # A quarter of the whole, but never less than one for each combination of instances and threads.
    search = Search(axes, measure, Goal(), most=max(len(axes) // 4, 8))
    assert measure(search.run(Layout(1, budget, 16))).rate >= 0.97 * best


@given(**MACHINES, share=st.floats(0.3, 3))
def test_a_target_is_met_if_a_layout_meets_it(
    budget: int, fixed_ms: float, row_ms: float, scaling: float, memory: float, share: float
) -> None:
    measure = machine(budget, fixed_ms, row_ms, scaling, memory)
    axes = Axes(shapes(budget), BATCHES, DELAYS_US)
    start = Layout(1, budget, 16)
    target_ms = share * measure(start).p99_ms
    found = Search(axes, measure, Goal(target_ms), most=len(axes)).run(start)
    goal = Goal(target_ms)
    assert goal.key(measure(found)) >= goal.key(measure(start))


def test_close_results_are_measured_again() -> None:
    asked: list[Layout] = []
    measure = machine(2, 1, 10, 0.9, 0.05, noise=0.02)

    def counted(layout: Layout) -> Measurement:
        asked.append(layout)
        return measure(layout)

    best = Search(Axes(shapes(2), BATCHES), counted, Goal(), most=99).run(Layout(1, 2, 16))
    assert asked.count(best) > 1


def test_the_end_of_the_budget_ends_the_search_with_the_best_so_far() -> None:
    left = iter(range(5))
    measure = machine(4, 1, 10, 0.5, 0)

    def short(layout: Layout) -> Measurement:
        if next(left, None) is None:
            raise OutOfBudget
        return measure(layout)

    search = Search(Axes(shapes(4), BATCHES), short, Goal(), most=99)
    best = search.run(Layout(1, 4, 16))
    assert len(search.found) == 5
    assert search.found[best].rate >= 0.98 * max(found.rate for found in search.found.values())


def test_no_batch_is_larger_than_the_requests_in_flight_allow() -> None:
    axes = Axes(shapes(4), BATCHES, largest=lambda instances: 8 // instances)
    search = Search(axes, machine(4, 8, 1, 0.9, 0), Goal(), most=99)
    best = search.run(Layout(1, 4, 32))
    assert all(layout.instances * layout.batch <= 8 for layout in search.found if layout != Layout(1, 4, 32))
    assert best.batch > 1


def test_no_budget_at_all() -> None:
    def none(_: Layout) -> Measurement:
        raise OutOfBudget

    with pytest.raises(OutOfBudget):
        Search(Axes(shapes(1), (1,)), none, Goal(), most=99).run(Layout())


@pytest.mark.parametrize(
    ("budget", "expected"),
    [(1, [(1, 1)]), (2, [(1, 1), (1, 2), (2, 1)]), (3, [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (3, 1)])],
)
def test_shapes(budget: int, expected: list[tuple[int, int]]) -> None:
    assert shapes(budget) == expected


@given(st.dictionaries(st.builds(Layout, st.integers(1, 9)), st.builds(Measurement, *[st.floats(1, 100)] * 3)))
def test_nothing_beats_the_frontier(found: dict[Layout, Measurement]) -> None:
    for layout in frontier(found):
        own = found[layout]
        assert not any(
            other.rate > own.rate and other.p99_ms < own.p99_ms and not math.isclose(other.p99_ms, own.p99_ms)
            for other in found.values()
        )
