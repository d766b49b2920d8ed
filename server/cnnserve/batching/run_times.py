"""Learns how long runs take by their size: a line through the latest runs, and how far runs lie above the line."""

_FORGET = 1 / 64
_FORGET_SPREAD = 1 / 32
# The line is as uncertain as the sizes are alike; the slope of runs of one size is that of a model without fixed time,
# which is the most that more rows can cost.
_PRIOR = 0.05
# One run that was disturbed must not count for more than this many usual ones.
_LONGEST = 3.0
# In mean absolute deviations: about 1 % of the runs take longer.
_DEVIATIONS = 3.0


class RunTimes:
    """Estimates in ns of a run's time by its number of rows. Use it on one thread."""

    def __init__(self) -> None:
        self._weight = 0.0
        self._size = self._ns = self._size2 = self._product = 0.0
        self._fixed_ns = self._row_ns = 0.0
        self._spread = 0.0

    def learn(self, size: int, duration_ns: int) -> None:
        """Learns from a run of `size` rows that took `duration_ns`."""
        expected_ns = self.usual(size)
        ns = float(max(1, duration_ns))
        if expected_ns:
            ns = min(ns, _LONGEST * expected_ns)
            self._spread += _FORGET_SPREAD * (abs(ns / expected_ns - 1) - self._spread)
        # Means over the first runs, then with exponential weights.
        self._weight += (1 - self._weight) * _FORGET if self._weight else _FORGET
        share = _FORGET / self._weight
        self._size += share * (size - self._size)
        self._ns += share * (ns - self._ns)
        self._size2 += share * (size * size - self._size2)
        self._product += share * (size * ns - self._product)
        without_fixed = self._ns / self._size
        prior = _PRIOR * self._size**2
        variance, covariance = self._size2 - self._size**2, self._product - self._size * self._ns
        slope = (max(0.0, covariance) + prior * without_fixed) / (max(0.0, variance) + prior)
        self._row_ns = min(slope, without_fixed)
        self._fixed_ns = self._ns - self._row_ns * self._size

    def usual(self, size: int) -> float:
        """Returns the usual time of a run of `size` rows; 0 before the first run."""
        return self._fixed_ns + self._row_ns * size

    def longest(self, size: int) -> int:
        """Returns a time that about 1 % of the runs of `size` rows exceed; 0 before the first run."""
        return round(self.usual(size) * (1 + _DEVIATIONS * self._spread))
