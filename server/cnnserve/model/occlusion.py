"""Shows which parts of an image a class depends on: hides one part after the other, and watches the probability fall.

It works for every network, because nothing but runs is needed. The runs go last, so they hold up no request for longer
than one short run.
"""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import numpy as np

from cnnserve.datatypes import Rows
from cnnserve.errors import InvalidInput
from cnnserve.model.version import Model

DEFAULT_CELLS = 8
_MOST_CELLS = 16
# A request waits at most for the run that has begun, so runs have no more rows than take about this long.
_RUN_NS = 25_000_000
MOST_ROWS = 32


@dataclass(frozen=True)
class Occlusion:
    """`drops`: by how much the probability of the class falls if the parts around each cell of the grid are hidden.

    A drop below 0 means that the class becomes more probable. `runs`: the number of rows that were run.
    """

    index: int
    probability: float
    drops: list[list[float]]
    runs: int


async def occlusion(
    model: Model, row: Rows, index: int | None, cells: int = 0, deadline_ns: int | None = None
) -> Occlusion:
    """Returns the occlusion map of a row (1, ...) of `Model.image_row` for a class, None: the most probable class.

    The grid has `cells` x `cells` cells (0: 8), fewer if the image has fewer pixels. What is hidden gets the mean
    colour of the image. Raises `ServingError`s.
    """
    cells = cells or DEFAULT_CELLS
    if not 2 <= cells <= _MOST_CELLS:
        raise InvalidInput(f"the grid has {cells} cells in a row, expected 2 to {_MOST_CELLS}")
    probabilities, _ = await model.run_last(row, deadline_ns)
    count = probabilities.shape[1]
    if index is None:
        index = int(probabilities[0].argmax())
    elif index >= count:
        raise InvalidInput(f"class {index} does not exist, the model has {count} classes")
    hidden = _Hidden(row, cells, channels_last=model.channels_last)
    left = [value async for value in _values(model, hidden, index, deadline_ns)]
    whole = float(probabilities[0, index])
    drops = (whole - np.reshape(left, hidden.grid)).tolist()
    return Occlusion(index, whole, drops, 1 + len(left))


async def _values(model: Model, hidden: "_Hidden", index: int, deadline_ns: int | None) -> AsyncIterator[float]:
    most = min(model.info.settings.max_batch_size, MOST_ROWS)
    done, size = 0, 1
    while done < len(hidden):
        rows = hidden.rows(done, done + size)
        probabilities, run_ns = await model.run_last(rows, deadline_ns)
        for value in probabilities[:, index]:
            yield float(value)
        done += len(rows)
        if run_ns * 2 < _RUN_NS:
            size = min(size * 2, most)


class _Hidden:
    """The copies of a row in which one part is hidden, in the order of the grid."""

    def __init__(self, row: Rows, cells: int, *, channels_last: bool) -> None:
        self._row = row
        self._last = channels_last
        axes = (1, 2) if channels_last else (2, 3)
        self._fill = row.mean(axis=axes, keepdims=True, dtype=np.float64).astype(row.dtype)
        height, width = (row.shape[axis] for axis in axes)
        self.grid = (min(cells, height), min(cells, width))
        self._parts = [(y, x) for y in _spans(height, self.grid[0]) for x in _spans(width, self.grid[1])]

    def __len__(self) -> int:
        return len(self._parts)

    def rows(self, start: int, stop: int) -> Rows:
        """Returns copies `start` to `stop`, fewer at the end."""
        parts = self._parts[start:stop]
        rows = np.repeat(self._row, len(parts), axis=0)
        for one, (y, x) in zip(rows, parts, strict=True):
            if self._last:
                one[y, x] = self._fill[0]
            else:
                one[:, y, x] = self._fill[0]
        return rows


def _spans(size: int, cells: int) -> Iterator[slice]:
    """Yields what is hidden around each cell: the cell, and half a cell on both sides of it."""
    for cell in range(cells):
        start, stop = (cell - 0.5) * size / cells, (cell + 1.5) * size / cells
        yield slice(max(0, round(start)), min(size, round(stop)))
