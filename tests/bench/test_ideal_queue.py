"""The ideal queue of bench/targets.py."""

import importlib.util
import itertools
import random
from collections.abc import Sequence
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support import REPOSITORY


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ideal_queue", REPOSITORY.parent / "bench" / "ideal_queue.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


queue = load()


def test_a_run_takes_all_that_wait() -> None:
    times = queue.RunTimes({1: [1.0], 3: [2.0]}, 0)
    # The first runs alone until 1.0; the next three together until 3.0; the last until 6.0.
    assert queue.latencies([0.0, 0.5, 0.6, 1.0, 5.0], times, 8) == [1.0, 2.5, 2.4, 2.0, 1.0]


def test_a_batch_has_a_limit() -> None:
    times = queue.RunTimes({1: [1.0], 2: [1.0]}, 0)
    assert queue.latencies([0.0, 0.1, 0.2, 0.3], times, 2) == pytest.approx([1.0, 1.9, 1.8, 2.7])


@pytest.mark.parametrize("load", [0.3, 0.5, 0.8])
def test_without_batches_it_waits_as_theory_says(load: float) -> None:
    """Pollaczek and Khinchine, for runs of one length: the mean wait is load / (2 - 2 load) runs."""
    chance = random.Random(1)
    arrivals, at = [], 0.0
    for _ in range(60_000):
        at += chance.expovariate(load)
        arrivals.append(at)
    found = queue.latencies(arrivals, queue.RunTimes({1: [1.0]}, 0), 1)
    assert sum(found) / len(found) - 1 == pytest.approx(load / (2 - 2 * load), rel=0.1)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=60), st.integers(1, 8))
def test_nobody_is_answered_before_the_shortest_run_or_out_of_turn(arrivals: Sequence[float], most: int) -> None:
    arrivals = sorted(arrivals)
    times = queue.RunTimes({1: [0.9, 1.0, 1.2], 4: [2.0, 2.2]}, 0)
    found = queue.latencies(arrivals, times, most)
    ends = [at + late for at, late in zip(arrivals, found, strict=True)]
    assert min(found) > 0.85
    assert all(one <= other + 1e-9 for one, other in itertools.pairwise(ends))
