"""Softmax and top-k."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cnnserve.model.classification import are_probabilities, softmax, top_k

LOGITS = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 4), st.integers(1, 20)), elements=st.floats(-1e4, 1e4, width=32)
)


@pytest.mark.parametrize("logits", [[-100, 0, 1], [1e4, 1e4], [0], [-3e38, 3e38]])
def test_softmax_is_finite_and_sums_to_one(logits: list[float]) -> None:
    with np.errstate(over="ignore"):
        result = softmax(np.array([logits], np.float32))
    assert np.isfinite(result).all()
    assert result.sum() == pytest.approx(1)


@given(LOGITS)
def test_softmax_gives_probabilities_in_the_logits_order(logits: np.ndarray) -> None:
    result = softmax(logits)
    assert are_probabilities(result)
    for row, source in zip(result, logits, strict=True):
        assert (np.diff(row[np.argsort(source, kind="stable")]) >= 0).all()


@pytest.mark.parametrize("rows", [[[0.5, 0.6]], [[1.5, -0.5]], [[float("nan"), 1.0]], [[15.3, 2.0]]])
def test_what_is_no_probability(rows: list[list[float]]) -> None:
    assert not are_probabilities(np.array(rows))


@pytest.mark.parametrize(("k", "expected"), [(0, 5), (1, 1), (6, 6), (7, 6), (1000, 6)])
def test_top_k_counts(k: int, expected: int) -> None:
    assert len(top_k(np.arange(6.0), k)) == expected


def test_ties_keep_the_order_of_their_index() -> None:
    assert top_k(np.array([0.2, 0.3, 0.2, 0.3]), 4).tolist() == [1, 3, 0, 2]


def test_rows_are_sorted_each_for_itself() -> None:
    rows = np.random.default_rng(0).permuted(np.tile(np.arange(9.0), (4, 1)), axis=1)
    for k in (1, 3, 9):
        assert (top_k(rows, k) == [top_k(row, k) for row in rows]).all()
        assert (np.take_along_axis(rows, top_k(rows, k), -1) == np.arange(9)[::-1][:k]).all()


def test_what_is_no_number_comes_last() -> None:
    assert top_k(np.array([0.2, np.nan, 0.3]), 3).tolist() == [2, 0, 1]
    assert top_k(np.array([0.2, np.nan, 0.3]), 1).tolist() == [2]
    assert top_k(np.array([[0.5, 0.5], [np.nan, 0.1]]), 1).tolist() == [[0], [1]]


@pytest.mark.parametrize("k", [1, 5, 512])
@pytest.mark.parametrize("values", [2, 50, 10**6])
def test_few_of_many_classes_are_those_of_all_sorted(k: int, values: int) -> None:
    """Also with ties among the most probable classes, at the end of them, and with nothing but ties."""
    rows = np.random.default_rng(k).integers(0, values, (2, 3, 5000)).astype(np.float32)
    rows[1, 2] = 1
    rows[0, 0, 7:20] = np.nan
    rows[0, 1, 3:] = np.nan
    assert (top_k(rows, k) == np.argsort(-rows, axis=-1, kind="stable")[..., :k]).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(5,), (2, 5), (2, 3, 5)])
def test_softmax_is_over_the_last_axis_in_float32(dtype: type, shape: tuple[int, ...]) -> None:
    logits = np.random.default_rng(0).normal(size=shape).astype(dtype)
    before = logits.copy()
    result = softmax(logits)
    exponentials = np.exp(logits.astype(np.float64))
    np.testing.assert_allclose(result, exponentials / exponentials.sum(axis=-1, keepdims=True), rtol=1e-4)
    assert result.dtype == np.float32
    assert (logits == before).all()
    assert are_probabilities(result)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[0.0, 1.0]], True),
        ([[-0.25, 1.25]], True),
        ([[-0.5, 1.5]], False),
        ([[0.75]], True),
        ([[1.25]], True),
        ([[0.5]], False),
        # One value is too large, and the sum is right.
        ([[1.5, *[-0.25] * 2]], False),
        ([[[0.5, 0.5], [1.0, 0.0]]], True),
        ([[[0.5, 0.5], [0.5, 0.0]]], False),
    ],
)
def test_probabilities_within_a_quarter(rows: list[list[float]], expected: bool) -> None:
    assert are_probabilities(np.array(rows), 0.25) is expected
