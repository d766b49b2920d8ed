"""The one definition of a percentile for all latencies that cnnserve reports."""

from collections.abc import Sequence


def percentile(ordered: Sequence[float], percent: int) -> float:
    """Returns the smallest of the ordered values that at least `percent` % of them do not exceed (nearest rank)."""
    # In whole numbers: 0.07 * 100 is more than 7.
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]
