"""An ideal server in simulated time: it costs nothing but its runs, whose times were measured."""

import math
import random
from bisect import bisect_left
from collections.abc import Mapping, Sequence


class RunTimes:
    """Draws times of runs in s from measured ones, by number of rows. Between two measured sizes it goes straight."""

    def __init__(self, measured: Mapping[int, Sequence[float]], seed: int) -> None:
        self._sizes = sorted(measured)
        self._medians = [sorted(measured[size])[len(measured[size]) // 2] for size in self._sizes]
        # How far runs of all sizes lie from the median of their size.
        self._shares = [
            each / median for size, median in zip(self._sizes, self._medians, strict=True) for each in measured[size]
        ]
        self._chance = random.Random(seed)

    def usual(self, rows: int) -> float:
        """Returns the median time of a run of `rows`."""
        place = min(max(1, bisect_left(self._sizes, rows)), len(self._sizes) - 1)
        if len(self._sizes) == 1:
            return self._medians[0] * rows / self._sizes[0]
        below, above = self._sizes[place - 1 : place + 1]
        share = (rows - below) / (above - below)
        return self._medians[place - 1] + share * (self._medians[place] - self._medians[place - 1])

    def draw(self, rows: int) -> float:
        """Returns the time of one run of `rows`."""
        return self.usual(rows) * self._chance.choice(self._shares)


def latencies(arrivals: Sequence[float], times: RunTimes, max_batch: int) -> list[float]:
    """Returns the latency of each arrival in s, if a run takes all that wait, at most `max_batch`, and no time is lost.

    `arrivals` ascend.
    """
    found: list[float] = []
    free = -math.inf
    while len(found) < len(arrivals):
        first = len(found)
        start = max(free, arrivals[first])
        last = first + 1
        while last < len(arrivals) and last - first < max_batch and arrivals[last] <= start:
            last += 1
        free = start + times.draw(last - first)
        found += [free - arrived for arrived in arrivals[first:last]]
    return found
