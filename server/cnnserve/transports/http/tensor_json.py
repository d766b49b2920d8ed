"""Tensor data in JSON <-> the bytes of raw contents."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from cnnserve.api.tensors import BYTES, pack_strings, unpack_strings
from cnnserve.datatypes import NUMPY_TYPES
from cnnserve.errors import InvalidInput

# A slice of values is read in about 5 ms.
_SLICE = 2**16
_PYTHON_TYPES: dict[str, tuple[set[type], str]] = {
    "b": ({bool}, "true and false"),
    "i": ({int}, "integers"),
    "u": ({int}, "integers"),
    "f": ({int, float}, "numbers"),
}


def raw_from_json(name: str, datatype: str, shape: Sequence[int], data: object) -> bytes:
    """Returns the bytes of an input whose values are nested as in `shape`, or flat. Raises `InvalidInput`."""
    dtype = NUMPY_TYPES.get(datatype)
    if dtype is None and datatype != BYTES:
        known = ", ".join([*NUMPY_TYPES, BYTES])
        raise InvalidInput(f"input '{name}' has datatype {datatype!r:.100}, expected one of {known}")
    if datatype == "FP16":
        raise InvalidInput(f"input '{name}' of type FP16 must be sent as binary data (binary_data_size)")
    values = _flat(name, shape, data)
    if dtype is None:
        _check_types(name, datatype, values, {str}, "strings")
        return pack_strings(value.encode() for value in values)
    parts = [values[start : start + _SLICE] for start in range(0, len(values), _SLICE)]
    return b"".join(_numbers(name, datatype, dtype, part) for part in parts)


def json_from_raw(name: str, datatype: str, raw: bytes) -> list[Any]:
    """Returns the values of an output as a flat list. Raises `InvalidInput` if JSON cannot represent them."""
    if datatype == "FP16":
        raise InvalidInput(f"output '{name}' of type FP16 has no form in JSON; ask for it with binary_data")
    if datatype == BYTES:
        try:
            return [item.decode() for item in unpack_strings(raw)]
        except UnicodeDecodeError as error:
            raise InvalidInput(f"output '{name}' has bytes that are not UTF-8; ask for it with binary_data") from error
    array = np.frombuffer(raw, NUMPY_TYPES[datatype])
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InvalidInput(f"output '{name}' has NaN or infinity, which JSON has not; ask for it with binary_data")
    values: list[Any] = array.tolist()
    return values


def _numbers(name: str, datatype: str, dtype: np.dtype[Any], values: list[Any]) -> bytes:
    types, words = _PYTHON_TYPES[dtype.kind]
    _check_types(name, datatype, values, types, words)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        for value in (min(values), max(values)):
            if not limits.min <= value <= limits.max:
                raise InvalidInput(f"input '{name}' has the value {value}, which does not fit into {datatype}")
    # A number above the largest float32 becomes infinity, as in every client.
    try:
        with np.errstate(over="ignore"):
            return np.array(values, dtype).tobytes()
    except OverflowError as error:
        # The JSON parser reads a float of this size as infinity, but an integer of any size as Python's integer.
        raise InvalidInput(f"input '{name}' of type {datatype} has an integer that is too large for a float") from error


def _flat(name: str, shape: Sequence[int], data: object) -> list[Any]:
    if not isinstance(data, list):
        raise InvalidInput(f"input '{name}' has data of type {type(data).__name__}, expected an array")
    values = data
    if data and isinstance(data[0], list):
        values = [data]
        for size in shape:
            if not all(type(row) is list and len(row) == size for row in values):
                raise InvalidInput(
                    f"input '{name}' has data that is not nested as in its shape {list(shape)}, nor flat"
                )
            values = list(itertools.chain.from_iterable(values))
    count = math.prod(shape)
    if len(values) != count:
        raise InvalidInput(f"input '{name}' has {len(values)} values, expected {count} for shape {list(shape)}")
    return values


def _check_types(name: str, datatype: str, values: list[Any], types: set[type], words: str) -> None:
    if set(map(type, values)) - types:
        wrong = next(value for value in values if type(value) not in types)
        raise InvalidInput(f"input '{name}' of type {datatype} has the value {wrong!r:.100}, expected {words}")
