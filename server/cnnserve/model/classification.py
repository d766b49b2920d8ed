"""Turns the output rows of a model into classes: softmax and top-k."""

import numpy as np
from numpy.typing import NDArray

DEFAULT_TOP_K = 5
# With fewer classes, sorting all of them is faster than selecting the candidates first.
_SELECT_FROM = 4096


def softmax(logits: NDArray[np.floating]) -> NDArray[np.float32]:
    """Returns the softmax over the last axis in float32. It is finite for finite input; each row sums to 1."""
    values = logits.astype(np.float32, copy=False)
    # The largest exponent is 0, so nothing overflows.
    exponentials: NDArray[np.float32] = np.exp(values - values.max(axis=-1, keepdims=True))
    exponentials /= exponentials.sum(axis=-1, keepdims=True)
    return exponentials


def are_probabilities(rows: NDArray[np.floating], tolerance: float = 1e-3) -> bool:
    """Returns whether every row has values from 0 to 1 that sum to 1, each within `tolerance`."""
    return bool(
        np.isfinite(rows).all()
        and (rows >= -tolerance).all()
        and (rows <= 1 + tolerance).all()
        and (np.abs(rows.astype(np.float64).sum(axis=-1) - 1) <= tolerance).all()
    )


def top_k(probabilities: NDArray[np.floating], k: int) -> NDArray[np.intp]:
    """Returns the indices of the `k` largest values of each row, largest first.

    Of equal values, the lower index is first. NaN is last. `k` 0 means 5, a `k` above the class count all classes.
    """
    count = probabilities.shape[-1]
    wanted = min(k or DEFAULT_TOP_K, count)
    if wanted == 1:
        best: NDArray[np.intp] = np.asarray(probabilities.argmax(axis=-1))[..., np.newaxis]
        # argmax returns the index of a NaN, if there is one.
        if not np.isnan(np.take_along_axis(probabilities, best, -1)).any():
            return best
    negated = -probabilities
    if count >= _SELECT_FROM and wanted * 8 <= count:
        rows = [_first(row, wanted) for row in negated.reshape(-1, count)]
        return np.reshape(rows, (*probabilities.shape[:-1], wanted))
    return _sorted(negated)[..., :wanted]


def _first(row: NDArray[np.floating], wanted: int) -> NDArray[np.intp]:
    """Returns `_sorted(row)[:wanted]`, but sorts only the values up to the last wanted one."""
    last = np.partition(row, wanted - 1)[wanted - 1]
    if np.isnan(last):
        return _sorted(row)[:wanted]
    found = np.flatnonzero(row <= last)
    return found[_sorted(row[found])[:wanted]]


def _sorted(rows: NDArray[np.floating]) -> NDArray[np.intp]:
    # A stable sort keeps equal values in the order of their indices.
    return np.argsort(rows, axis=-1, kind="stable")
