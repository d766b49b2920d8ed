"""The classification extension: the k largest values of an output as texts, "value:index" or "value:index:label"."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnserve.errors import InvalidInput

# Sorting and writing run on the event loop. Work at any of these limits takes 0.1 s to 0.4 s there.
_MAX_ELEMENTS = 1_000_000
_MAX_SORTED = 4 * _MAX_ELEMENTS
_MAX_TEXTS = 100_000
_TYPES = ("FP32", "FP64", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64")


def check(datatype: str, output: str) -> None:
    """Raises `InvalidInput` if Triton does not classify outputs of this data type either."""
    if datatype not in _TYPES:
        raise InvalidInput(
            f"classification of output '{output}': its data type is {datatype}, expected one of {', '.join(_TYPES)}; "
            "ask for the values instead"
        )


def check_size(rows: int, values: int, k: int, output: str) -> None:
    """Raises `InvalidInput` if finding the `k` largest of `values` values in each of `rows` rows is too much work."""
    where = f"classification of output '{output}'"
    if values > _MAX_ELEMENTS:
        raise InvalidInput(
            f"{where}: a row has {values} values, the limit is {_MAX_ELEMENTS}; ask for the values instead"
        )
    if rows * values > _MAX_SORTED:
        raise InvalidInput(
            f"{where}: {rows} rows of {values} values, the limit is {_MAX_SORTED} values; send fewer rows"
        )
    if (texts := rows * min(k, values)) > _MAX_TEXTS:
        raise InvalidInput(
            f"{where}: {texts} classes as texts, the limit is {_MAX_TEXTS}; ask for fewer classes, or for the values "
            "instead"
        )


def classes(rows: NDArray[Any], k: int, labels: Sequence[str], output: str) -> tuple[int, Iterator[bytes]]:
    """Returns the number of classes of each row, and all texts, row by row.

    In a row, larger values come first; of equal values, the lower index comes first. Values are written as in C++:
    floats with six decimals. Raises as `check_size`.
    """
    flat = rows.reshape(len(rows), -1)
    count = flat.shape[1]
    check_size(len(flat), count, k, output)
    # The usual descending sort negates the values, but unsigned numbers have no negation. So this is a stable
    # ascending sort of the reversed row, read backwards.
    order = count - 1 - np.argsort(flat[:, ::-1], axis=1, kind="stable")[:, : -min(k, count) - 1 : -1]
    values = np.take_along_axis(flat, order, axis=1)
    return order.shape[1], _texts(values.tolist(), order.tolist(), labels)


def _texts(values: list[list[Any]], order: list[list[int]], labels: Sequence[str]) -> Iterator[bytes]:
    for row, indices in zip(values, order, strict=True):
        for value, index in zip(row, indices, strict=True):
            number = f"{value:f}" if isinstance(value, float) else str(value)
            # As in Triton, a class without a line in the label file has no label.
            label = f":{labels[index]}" if index < len(labels) else ""
            yield f"{number}:{index}{label}".encode()
