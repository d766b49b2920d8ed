"""Finds the best layout with few measurements: a search over a function that measures one.

The speed rises and falls only once along most axes: more rows in a batch help until the batch is larger than what is in
flight, more threads until they wait for each other. So the search climbs along one axis after the other, from several
combinations of instances and threads, and leaves a direction as soon as it becomes worse.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from cnnserve.model_config.layout import Layout

# Layouts this close may be in the wrong order, so they are measured again.
_CLOSE = 0.03
_REPEATED = 3
# Without a target, a p99 may become this many times that of the layout before.
WORSE = 1.2
# Less is no reason to change anything.
_EQUAL = 0.02


@dataclass(frozen=True)
class Measurement:
    """Rows per second, the latencies of requests in ms, and CPU time in ms a row."""

    rate: float
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    cpu_ms: float = 0.0


@dataclass(frozen=True)
class Axes:
    """The layouts to search: pairs of instances and threads, sizes of batches, and delays, each ascending.

    `largest`: the largest batch for a number of instances; None: all sizes are for all.
    """

    shapes: Sequence[tuple[int, int]]
    batches: Sequence[int]
    delays_us: Sequence[int] = (0,)
    largest: Callable[[int], int] | None = None

    def holds(self, instances: int, batch: int) -> bool:
        """Returns whether batches may be so large with this number of instances."""
        return self.largest is None or batch <= max(self.batches[0], self.largest(instances))

    def __len__(self) -> int:
        return len(self.shapes) * len(self.batches) * len(self.delays_us)


Measure = Callable[[Layout], Measurement]


class OutOfBudget(Exception):
    """There is no time for another measurement."""


@dataclass(frozen=True)
class Goal:
    """Most rows per second with a p99 of at most `p99_ms`; if no layout reaches it, the lowest p99."""

    p99_ms: float | None = None

    def key(self, found: Measurement) -> tuple[bool, float]:
        """Returns what orders measurements: the best is the largest."""
        if self.p99_ms is not None and found.p99_ms > self.p99_ms:
            return False, -found.p99_ms
        return True, found.rate


class Search:
    """Measures layouts until none is better nearby, or `measure` raises `OutOfBudget`.

    `found` has all that it measured. `most`: no more measurements of different layouts than this.
    """

    def __init__(self, axes: Axes, measure: Measure, goal: Goal, most: int) -> None:
        self._axes = axes
        self._measure = measure
        self._goal = goal
        self._most = most
        self._runs: dict[Layout, list[Measurement]] = {}

    @property
    def found(self) -> Mapping[Layout, Measurement]:
        """The means of the measurements of each layout."""
        return {layout: _mean(runs) for layout, runs in self._runs.items()}

    def run(self, start: Layout) -> Layout:
        """Returns the best layout. `start` is measured first. Raises `OutOfBudget` if not even that was possible."""
        self._look(start)
        with contextlib.suppress(OutOfBudget):
            self._climb_all(start)
            self._settle()
        return self._simplest(start)

    def best(self) -> Layout:
        """Returns the best of the layouts measured so far."""
        found = self.found
        return max(found, key=lambda layout: self._goal.key(found[layout]))

    def _simplest(self, start: Layout) -> Layout:
        """Returns `start` if it is as good as the best one, else one without delay and with few instances."""
        equal = self._close(_EQUAL)
        return min(equal, key=lambda layout: (layout != start, layout.delay_us, layout.instances, -equal[layout].rate))

    def _close(self, share: float) -> dict[Layout, Measurement]:
        """Returns the best layout, and those that reach the goal with at most `share` less rows per second."""
        found, best = self.found, self.best()
        good, rate = self._goal.key(found[best])
        if not good:
            return {best: found[best]}
        return {
            layout: each
            for layout, each in found.items()
            if self._goal.key(each)[0] and each.rate >= (1 - share) * rate
        }

    def _climb_all(self, start: Layout) -> None:
        middle = self._axes.batches[len(self._axes.batches) // 2]
        # All combinations with one batch, then upwards from each, best first.
        tops = [
            Layout(*shape, max(each for each in batches if each <= middle), self._axes.delays_us[0])
            for shape in self._axes.shapes
            if (batches := [each for each in self._axes.batches if self._axes.holds(shape[0], each)])
        ]
        for layout in tops:
            self._look(layout)
        for layout in sorted([*tops, start], key=self._key, reverse=True):
            self._climb(layout)

    def _climb(self, layout: Layout) -> None:
        best = layout
        while True:
            better = max((self._along(best, axis) for axis in range(2)), key=self._key)
            if self._key(better) <= self._key(best):
                return
            best = better

    def _along(self, layout: Layout, axis: int) -> Layout:
        """Returns the best layout in both directions of one axis: batches or delays."""
        values = (self._axes.batches, self._axes.delays_us)[axis]
        best = layout
        for step in (1, -1):
            for candidate in _walk(layout, axis, values, step):
                if not self._axes.holds(candidate.instances, candidate.batch):
                    break
                self._look(candidate)
                if self._key(candidate) <= self._key(best):
                    break
                best = candidate
        return best

    def _settle(self) -> None:
        """Measures the best layouts again if they are close to each other."""
        for _ in range(_REPEATED - 1):
            close = self._close(_CLOSE)
            if len(close) < 2:
                return
            for layout in sorted(close, key=self._key, reverse=True)[:_REPEATED]:
                self._runs[layout].append(self._measure(layout))

    def _look(self, layout: Layout) -> None:
        if layout in self._runs:
            return
        if len(self._runs) >= self._most:
            raise OutOfBudget
        self._runs[layout] = [self._measure(layout)]

    def _key(self, layout: Layout) -> tuple[bool, float]:
        return self._goal.key(_mean(self._runs[layout]))


def frontier(found: Mapping[Layout, Measurement]) -> list[Layout]:
    """Returns the layouts for which no other one has both more rows per second and a lower p99, by p99."""
    best, result = 0.0, []
    for layout in sorted(found, key=lambda each: (found[each].p99_ms, -found[each].rate)):
        if found[layout].rate > best:
            best = found[layout].rate
            result.append(layout)
    return result


def shapes(budget: int) -> list[tuple[int, int]]:
    """Returns the pairs of instances and threads that use at most `budget` CPU threads.

    The instances share one session, whose threads help all of them, and each brings its own.
    """
    powers = [1 << power for power in range(budget.bit_length()) if 1 << power <= budget]
    counts = sorted({*powers, budget})
    pairs = {
        (instances, threads)
        for instances in counts
        for threads in (*counts, budget - instances + 1)
        if instances + threads - 1 <= budget
    }
    return sorted(pairs)


def _walk(layout: Layout, axis: int, values: Sequence[int], step: int) -> Iterator[Layout]:
    current = layout.delay_us if axis else layout.batch
    position = min(range(len(values)), key=lambda index: abs(values[index] - current))
    while 0 <= (position := position + step) < len(values):
        value = values[position]
        batch, delay_us = (layout.batch, value) if axis else (value, layout.delay_us)
        yield Layout(layout.instances, layout.threads, batch, delay_us)


def _mean(runs: Sequence[Measurement]) -> Measurement:
    count = len(runs)
    return Measurement(
        sum(run.rate for run in runs) / count,
        sum(run.p50_ms for run in runs) / count,
        sum(run.p99_ms for run in runs) / count,
        sum(run.cpu_ms for run in runs) / count,
    )
