"""The classification extension: an output's k largest values as texts, "value:index" or "value:index:label"."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnserve.errors import InvalidInput

# Sorting and writing happen on the event loop: each of these takes at most some 0.1 to 0.4 s there.
_MAX_ELEMENTS = 1_000_000
_MAX_SORTED = 4 * _MAX_ELEMENTS
_MAX_TEXTS = 100_000
_TYPES = ("FP32", "FP64", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64")


def check(datatype: str, output: str) -> None:
    """Raises `InvalidInput` for an output whose values have no classes, as in Triton."""
    if datatype not in _TYPES:
        raise InvalidInput(f"classification of output '{output}': its type {datatype} is none of {', '.join(_TYPES)}")


def check_size(rows: int, values: int, k: int, output: str) -> None:
    """Raises `InvalidInput` where the `k` best of `values` values in each of `rows` are too much work."""
    where = f"classification of output '{output}'"
    if values > _MAX_ELEMENTS:
        raise InvalidInput(f"{where}: {values} values, at most {_MAX_ELEMENTS} are taken")
    if rows * values > _MAX_SORTED:
        raise InvalidInput(f"{where}: {rows} rows of {values} values, at most {_MAX_SORTED} are taken; send fewer rows")
    if (texts := rows * min(k, values)) > _MAX_TEXTS:
        raise InvalidInput(
            f"{where}: {texts} classes as texts, at most {_MAX_TEXTS} are written; ask for fewer, or for the values"
        )


def classes(rows: NDArray[Any], k: int, labels: Sequence[str], output: str) -> tuple[int, Iterator[bytes]]:
    """How many a row has, and all texts, row by row: the largest first, among equals the lower index.

    Values are written as in C++: floats with six decimals. Raises as `check_size`.
    """
    flat = rows.reshape(len(rows), -1)
    count = flat.shape[1]
    check_size(len(flat), count, k, output)
    # Ascending and stable on the reversed row, read backwards: no negation, which unsigned numbers have not.
    order = count - 1 - np.argsort(flat[:, ::-1], axis=1, kind="stable")[:, : -min(k, count) - 1 : -1]
    values = np.take_along_axis(flat, order, axis=1)
    return order.shape[1], _texts(values.tolist(), order.tolist(), labels)


def _texts(values: list[list[Any]], order: list[list[int]], labels: Sequence[str]) -> Iterator[bytes]:
    for row, indices in zip(values, order, strict=True):
        for value, index in zip(row, indices, strict=True):
            number = f"{value:f}" if isinstance(value, float) else str(value)
            # Triton, too, leaves out the names that a label file is short of.
            label = f":{labels[index]}" if index < len(labels) else ""
            yield f"{number}:{index}{label}".encode()
