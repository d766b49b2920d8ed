"""The batch sizes to which batches are padded."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnserve.batching.buckets import checked_buckets, default_buckets, padded_size
from cnnserve.errors import ModelLoadFailed


@pytest.mark.parametrize(
    ("maximum", "preferred", "expected"),
    [(1, (), (1,)), (8, (), (1, 2, 4, 8)), (12, (), (1, 2, 4, 8, 12)), (16, (6,), (1, 2, 4, 6, 8, 16))],
)
def test_the_default_is_powers_of_two_and_what_is_preferred(
    maximum: int, preferred: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    assert default_buckets(maximum, preferred) == expected


def test_configured_sizes_are_sorted_and_reach_the_maximum() -> None:
    assert checked_buckets((4, 1, 4), 16) == (1, 4, 16)
    with pytest.raises(ModelLoadFailed, match="size 32, expected sizes from 1 to the max_batch_size of 16"):
        checked_buckets((32,), 16)


@given(st.integers(1, 300).flatmap(lambda maximum: st.tuples(st.just(maximum), st.integers(1, maximum))))
def test_every_batch_fits_with_less_than_half_of_it_padding(sizes: tuple[int, int]) -> None:
    maximum, count = sizes
    buckets = default_buckets(maximum)
    size = padded_size(buckets, count)
    assert size in buckets
    assert count <= size < 2 * count or size == count == 1


def test_without_buckets_and_above_them_nothing_is_padded() -> None:
    assert (padded_size((), 5), padded_size((1, 4), 5), padded_size((1, 4), 3)) == (5, 5, 4)


@pytest.mark.parametrize("sizes", [(0,), (4, 0), (-1,), (5,)])
def test_a_bucket_is_from_one_row_to_the_maximum(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ModelLoadFailed, match=str(min(sizes) if min(sizes) < 1 else max(sizes))):
        checked_buckets(sizes, 4)
    assert checked_buckets((1, 4), 4) == (1, 4)
