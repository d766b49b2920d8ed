"""Batch sizes that really run: on devices where a new shape costs, every batch is padded to one of a few sizes.

A cuDNN search, a TensorRT engine and a CUDA graph belong to one shape each. With a fixed set of sizes all of them are
made before READY, and the device's memory has a known top.
"""

from bisect import bisect_left
from collections.abc import Sequence

from cnnserve.errors import ModelLoadFailed


def default_buckets(maximum: int, preferred: Sequence[int] = ()) -> tuple[int, ...]:
    """Powers of two below `maximum`, the preferred sizes and `maximum`, ascending."""
    powers = {1 << exponent for exponent in range(maximum.bit_length()) if 1 << exponent < maximum}
    return tuple(sorted(powers | {*preferred, maximum}))


def checked_buckets(sizes: Sequence[int], maximum: int) -> tuple[int, ...]:
    """The configured sizes ascending, with `maximum` among them. Raises `ModelLoadFailed` for one that cannot be."""
    for size in sizes:
        if not 1 <= size <= maximum:
            raise ModelLoadFailed(f"cnnserve.batch_buckets: {size} is not within 1 and max_batch_size {maximum}")
    return tuple(sorted({*sizes, maximum}))


def padded_size(buckets: Sequence[int], count: int) -> int:
    """How many rows a run of `count` rows has: the next bucket, or `count` itself above all or without any."""
    index = bisect_left(buckets, count)
    return buckets[index] if index < len(buckets) else count
