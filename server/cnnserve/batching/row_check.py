"""Checks the rows that a run returns: values are finite, and probabilities are probabilities.

The check takes a few passes over the arrays of a whole batch. It looks at single rows only if a pass finds a bad value.
"""

import enum
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cnnserve.batching.drift import Drift
from cnnserve.datatypes import Rows

# Largest difference of a sum from 1, and of a probability from the range of 0 to 1.
_TOLERANCE = 1e-3
# Python looks at so few values faster than numpy, which needs 1 us for each pass.
_FEW = 128
# Every so many bad rows in a row, the model itself is in doubt.
SUSPECT_AFTER = 100


class RowKind(enum.Enum):
    """What the values of the classes are. The names are the manifest's words for activations."""

    ANY = "none"
    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"


@dataclass(frozen=True)
class RowCheck:
    """The rules for the outputs called `names`. The output with the index `classes` holds rows of the given `kind`.

    `drift` counts the good rows of that output; None: nothing does.
    """

    names: Sequence[str]
    classes: int = 0
    kind: RowKind = RowKind.ANY
    drift: Drift | None = None

    def bad_rows(self, outputs: Sequence[Rows]) -> dict[int, str]:
        """Returns what is wrong with each bad row, by its index. Rows that are not listed are good."""
        bad: dict[int, str] = {}
        for index, output in enumerate(outputs):
            kind = self.kind if index == self.classes else RowKind.ANY
            if output.dtype.kind == "f" and not _are_good(output, kind):
                for row, problem in _problems(output, kind).items():
                    bad.setdefault(row, f"output '{self.names[index]}' {problem}")
        return bad


def is_finite(values: Rows) -> bool:
    """Returns whether no value is NaN or infinite: 10 us for 150,000 float32 values, 140 us for as many float16."""
    return values.dtype.kind != "f" or bool(np.isfinite(values).all())


class Streak:
    """Counts bad rows without a good one between them; `on_suspect` is called at every 100th."""

    def __init__(self, on_suspect: Callable[[], None]) -> None:
        self._on_suspect = on_suspect
        self._length = 0

    def add(self, size: int, bad: Mapping[int, str]) -> None:
        """Notes a run that returned `size` rows, of which those in `bad` are bad."""
        if not bad:
            self._length = 0
            return
        suspect = False
        for row in range(size):
            self._length = self._length + 1 if row in bad else 0
            suspect = suspect or (self._length > 0 and self._length % SUSPECT_AFTER == 0)
        if suspect:
            self._on_suspect()


def _are_good(output: Rows, kind: RowKind) -> bool:
    if 0 < output.size <= _FEW:
        return all(_is_good(row, kind) for row in output.reshape(len(output), -1).tolist())
    if kind is RowKind.ANY or not output.size:
        return is_finite(output)
    # Comparisons with NaN are false.
    low, high = float(output.min()), float(output.max())
    if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):
        return False
    if kind is RowKind.SIGMOID:
        return True
    # A sum of float16 values in float16 would be inexact.
    wide = np.float32 if output.dtype == np.float16 else None
    sums = output.reshape(len(output), -1).sum(axis=1, dtype=wide)
    return bool(sums.min() >= 1 - _TOLERANCE and sums.max() <= 1 + _TOLERANCE)


def _is_good(row: list[float], kind: RowKind) -> bool:
    # The sum shows a NaN, which the minimum and the maximum may pass over.
    total = sum(row)
    if kind is RowKind.ANY:
        return math.isfinite(total)
    if not (min(row) >= -_TOLERANCE and max(row) <= 1 + _TOLERANCE):
        return False
    return math.isfinite(total) if kind is RowKind.SIGMOID else abs(total - 1) <= _TOLERANCE


def _problems(output: Rows, kind: RowKind) -> dict[int, str]:
    rows = output.reshape(len(output), -1).astype(np.float64)
    finite = np.asarray(np.isfinite(rows).all(axis=1))
    problems = {int(row): "has values that are not finite" for row in np.flatnonzero(~finite)}
    if kind is RowKind.ANY or not rows.size:
        return problems
    rows = np.where(finite[:, np.newaxis], rows, 0)
    lowest, highest, sums = rows.min(axis=1), rows.max(axis=1), rows.sum(axis=1)
    beyond = finite & ((lowest < -_TOLERANCE) | (highest > 1 + _TOLERANCE))
    for row in np.flatnonzero(beyond):
        problems[int(row)] = f"has probabilities from {lowest[row]:.4g} to {highest[row]:.4g}, expected 0 to 1"
    if kind is RowKind.SOFTMAX:
        for row in np.flatnonzero(finite & (np.abs(sums - 1) > _TOLERANCE)):
            problems[int(row)] = f"has probabilities that sum to {sums[row]:.4g}, expected 1"
    return problems
