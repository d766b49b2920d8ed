"""Percentiles by nearest rank."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnserve.batching.percentile import percentile


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([5], 50, 5),
        ([1, 2], 50, 1),
        ([1, 2, 3], 50, 2),
        (range(1, 101), 7, 7),
        (range(1, 101), 99, 99),
        (range(1, 102), 99, 100),
        ([1, 2, 3], 0, 1),
        ([1, 2, 3], 100, 3),
    ],
)
def test_the_nearest_rank(values: list[float], percent: int, expected: float) -> None:
    assert percentile(values, percent) == expected


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=300), st.integers(0, 100))
def test_it_is_numpys_inverted_distribution(values: list[float], percent: int) -> None:
    expected = np.percentile(values, percent, method="inverted_cdf")
    assert percentile(sorted(values), percent) == expected
