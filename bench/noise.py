"""Whether a number is worse than the noise of earlier ones explains."""

import statistics
from collections.abc import Sequence

_NEEDED = 3
_LEAST = 0.05
# The standard deviation of normal noise, as a multiple of its median absolute deviation.
_CONSISTENT = 1.4826


def worst(past: Sequence[float], *, larger_is_better: bool) -> float | None:
    """Returns the worst ratio that noise explains: three standard deviations from the median, at least 5 % of it.

    The deviation is estimated from the median absolute deviation, so that one bad run does not widen it. None if there
    are too few runs.
    """
    if len(past) < _NEEDED:
        return None
    middle = statistics.median(past)
    noise = _CONSISTENT * statistics.median(abs(value - middle) for value in past)
    distance = max(3 * noise, _LEAST * middle)
    return middle - distance if larger_is_better else middle + distance
