"""The schedule of open loops."""

from itertools import islice, pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cnnserve.tools.load.arrivals import poisson


@given(st.floats(1e-3, 1e6), st.integers())
def test_times_ascend_and_belong_to_their_seed(rate: float, seed: int) -> None:
    times = list(islice(poisson(rate, seed), 50))
    assert times == list(islice(poisson(rate, seed), 50))
    assert all(before <= after for before, after in pairwise([0.0, *times]))
    assert times != list(islice(poisson(rate, seed + 1), 50)) or seed == -(seed + 1)


@given(st.floats(0.1, 1e5))
def test_a_higher_rate_is_the_same_schedule_in_less_time(rate: float) -> None:
    slow, fast = (list(islice(poisson(factor * rate, 3), 20)) for factor in (1, 10))
    assert np.allclose(slow, np.array(fast) * 10)


def test_waits_are_exponential_and_independent() -> None:
    waits = np.diff(list(islice(poisson(200, 1), 20001)))
    assert abs(waits.mean() * 200 - 1) < 0.03
    assert abs(waits.std() / waits.mean() - 1) < 0.03
    assert abs(np.corrcoef(waits[:-1], waits[1:])[0, 1]) < 0.03
