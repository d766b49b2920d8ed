"""Counts what a version answers, so that its owner sees a drift: how sure it is, what it predicts, what it is asked.

numpy needs a microsecond for each step, whatever the number of rows. So output rows are kept for a moment and counted
many at a time. Inputs are sampled, because they are much larger.
"""

import math
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cnnserve.datatypes import Rows

# Upper bounds of the buckets. A sure model has most of its probabilities near 1.
TOP1_BOUNDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0)
ENTROPY_BOUNDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
# With more classes, only the most frequent ones are reported.
_ALL_CLASSES = 1000
_MOST_FREQUENT = 100
# Rows are counted as soon as so many batches or values are kept.
_KEPT_BATCHES = 256
_KEPT_VALUES = 65_536
# At most one batch in this time is sampled, and at most so many of its values.
_SAMPLE_NS = 10_000_000
_SAMPLE_VALUES = 4096
# The mean of the inputs is that of about so many samples.
_SAMPLES = 1000
_LEAST = 1e-30


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of values."""

    mean: float
    deviation: float


@dataclass(frozen=True)
class Buckets:
    """How many values lie up to each bound and above the bound before it; the last count is for those above all."""

    counts: tuple[int, ...]
    total: float


@dataclass(frozen=True, eq=False)
class Counts:
    """What was counted. `entropy`: 0 to 1, in units of the largest possible one; None if rows are no distribution.

    `classes`: rows of a class and how often it was predicted, without classes that never were; with more than 1,000
    classes, the 100 most frequent ones. `inputs`: of recent inputs; None: there were none.
    """

    top1: Buckets
    entropy: Buckets | None
    classes: NDArray[np.int64]
    inputs: Moments | None


def moments(values: Rows) -> Moments:
    """Returns mean and standard deviation of the values of an array."""
    wide = values.astype(np.float64)
    return Moments(float(wide.mean()), float(wide.std()))


class Drift:
    """Counts the good rows of a version. Thread-safe.

    `to_probabilities` turns the rows into probabilities; None: they are. `are_distributions`: whether a row then sums
    to 1. `clock`: in ns.
    """

    def __init__(
        self,
        to_probabilities: Callable[[Rows], Rows] | None = None,
        *,
        are_distributions: bool = True,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._to_probabilities = to_probabilities
        self._are_distributions = are_distributions
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: list[Rows] = []
        self._kept_values = 0
        self._top1 = _Histogram(TOP1_BOUNDS)
        self._entropy = _Histogram(ENTROPY_BOUNDS)
        self._classes = np.zeros(0, np.int64)
        self._next_sample_ns = 0
        self._samples = 0
        # Means of the sampled values and of their squares.
        self._mean = self._square = 0.0

    def add(self, batch: Rows, rows: Rows, bad: Collection[int] = ()) -> None:
        """Notes a run: its input without padding, its output rows, and which of these must not be counted."""
        if bad:
            rows = np.delete(rows, list(bad), axis=0)
        now = self._clock()
        with self._lock:
            if self._kept and self._kept[0].shape[1:] != rows.shape[1:]:
                self._count()
            if rows.size:
                self._kept.append(rows)
                self._kept_values += rows.size
            if len(self._kept) >= _KEPT_BATCHES or self._kept_values >= _KEPT_VALUES:
                self._count()
            if now >= self._next_sample_ns:
                self._next_sample_ns = now + _SAMPLE_NS
                self._sample(batch)

    def read(self) -> Counts:
        """Returns all that was counted. Takes up to some milliseconds, so call it on a thread."""
        with self._lock:
            self._count()
            inputs = None
            if self._samples:
                inputs = Moments(self._mean, math.sqrt(max(0.0, self._square - self._mean**2)))
            entropy = self._entropy.buckets() if self._are_distributions else None
            return Counts(self._top1.buckets(), entropy, _frequent(self._classes), inputs)

    def _count(self) -> None:
        kept, self._kept, self._kept_values = self._kept, [], 0
        if not kept:
            return
        rows = np.concatenate(kept) if len(kept) > 1 else kept[0]
        rows = rows.reshape(len(rows), -1).astype(np.float32, copy=False)
        if self._to_probabilities is not None:
            rows = self._to_probabilities(rows)
        self._top1.add(rows.max(axis=1))
        if self._are_distributions and rows.shape[1] > 1:
            # A value of 0 adds nothing, but has no logarithm.
            entropies = -(rows * np.log(np.maximum(rows, _LEAST))).sum(axis=1) / math.log(rows.shape[1])
            self._entropy.add(entropies)
        predicted = np.bincount(rows.argmax(axis=1), minlength=len(self._classes))
        predicted[: len(self._classes)] += self._classes
        self._classes = predicted

    def _sample(self, batch: Rows) -> None:
        values = batch.reshape(-1)
        # An odd step that no three channels divide, so that the sample has values of all of them.
        step = max(1, values.size // _SAMPLE_VALUES) | 1
        step += 2 if step % 3 == 0 else 0
        found = values[::step].astype(np.float64)
        if not found.size:
            return
        self._samples += 1
        weight = max(1 / self._samples, 1 / _SAMPLES)
        self._mean += weight * (float(found.mean()) - self._mean)
        self._square += weight * (float(found @ found) / found.size - self._square)


class _Histogram:
    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = np.array(bounds)
        self._counts = np.zeros(len(bounds) + 1, np.int64)
        self._total = 0.0

    def add(self, values: NDArray[np.floating]) -> None:
        places = np.searchsorted(self._bounds, values)
        self._counts += np.bincount(places, minlength=len(self._counts))
        self._total += float(values.sum(dtype=np.float64))

    def buckets(self) -> Buckets:
        return Buckets(tuple(self._counts.tolist()), self._total)


def _frequent(classes: NDArray[np.int64]) -> NDArray[np.int64]:
    numbers = np.flatnonzero(classes)
    if len(classes) > _ALL_CLASSES and len(numbers) > _MOST_FREQUENT:
        # Stable, so that of two equally frequent classes always the same one is reported.
        numbers = np.sort(np.argsort(-classes, kind="stable")[:_MOST_FREQUENT])
    return np.stack([numbers, classes[numbers]], axis=1)
