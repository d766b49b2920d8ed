"""The limit that earlier runs set."""

import importlib.util
from types import ModuleType

from hypothesis import given
from hypothesis import strategies as st

from support import REPOSITORY


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("noise", REPOSITORY.parent / "bench" / "noise.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


worst = load().worst


def test_too_few_runs_set_no_limit() -> None:
    assert worst([1.0, 1.0], larger_is_better=True) is None


def test_a_loss_of_a_tenth_is_seen_and_one_of_a_fiftieth_is_not() -> None:
    past = [0.97, 0.98, 0.975, 0.97, 0.985]
    limit = worst(past, larger_is_better=True)
    assert 0.9 * 0.975 < limit < 0.98 * 0.975
    limit = worst(past, larger_is_better=False)
    assert 1.02 * 0.975 < limit < 1.1 * 0.975


@given(st.lists(st.floats(0.9, 1.1), min_size=5, max_size=30))
def test_one_bad_run_hardly_widens_the_limit(past: list[float]) -> None:
    limit = worst([*past, 0.1], larger_is_better=True)
    assert limit >= 0.9 - 3 * 1.4826 * 0.2 - 0.05 * 1.1


@given(st.lists(st.floats(0.1, 10), min_size=3))
def test_the_median_always_passes(past: list[float]) -> None:
    middle = sorted(past)[len(past) // 2]
    assert worst(past, larger_is_better=True) <= middle
