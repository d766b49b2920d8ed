"""Buckets: the few batch sizes to which batches are padded on devices for which each new shape is expensive.

A cuDNN search, a TensorRT engine and a CUDA graph belong to one shape each. With a fixed set of sizes, all of them are
made before the version is READY, and the device memory that they need has a known maximum.
"""

from bisect import bisect_left
from collections.abc import Sequence

from cnnserve.errors import ModelLoadFailed


def default_buckets(maximum: int, preferred: Sequence[int] = ()) -> tuple[int, ...]:
    """Returns the powers of two below `maximum`, the preferred sizes and `maximum`, ascending."""
    powers = {1 << exponent for exponent in range(maximum.bit_length())}
    return tuple(sorted(powers | {*preferred, maximum}))


def checked_buckets(sizes: Sequence[int], maximum: int) -> tuple[int, ...]:
    """Returns the configured sizes and `maximum`, ascending.

    Raises `ModelLoadFailed` for a size below 1 or above `maximum`.
    """
    for size in sizes:
        if not 1 <= size <= maximum:
            raise ModelLoadFailed(
                f"cnnserve.batch_buckets has the size {size}, expected sizes from 1 to the max_batch_size of {maximum}"
            )
    return tuple(sorted({*sizes, maximum}))


def padded_size(buckets: Sequence[int], count: int) -> int:
    """Returns the smallest bucket that holds `count` rows; if there is none, `count`."""
    index = bisect_left(buckets, count)
    return buckets[index] if index < len(buckets) else count
