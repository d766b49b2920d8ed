"""Arrays as the bytes of tensors in the Open Inference Protocol, and back. Imported with the first `infer`."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .errors import InternalError, InvalidInputError

_TYPES: Final = {
    "BOOL": np.dtype("bool"),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
_NAMES: Final = {dtype: name for name, dtype in _TYPES.items()}
_BYTES: Final = "BYTES"


def encoded(name: str, value: Any) -> tuple[str, tuple[int, ...], bytes]:
    """Returns datatype, shape and bytes of an array. Raises `InvalidInputError` for a type that has no name."""
    array = np.asarray(value)
    if array.dtype.kind in "SUO":
        return _BYTES, array.shape, _packed(name, array)
    little = array.dtype.newbyteorder("<")
    datatype = _NAMES.get(little)
    if datatype is None:
        raise InvalidInputError(f"tensor {name!r} has the type {array.dtype}: expected one of {', '.join(_TYPES)}")
    return datatype, array.shape, np.ascontiguousarray(array, little).tobytes()


def _packed(name: str, array: NDArray[Any]) -> bytes:
    """Returns texts and bytes, each after its length in four bytes."""
    parts = []
    for item in array.ravel():
        if not isinstance(item, bytes | str):
            kind = type(item).__name__
            raise InvalidInputError(f"tensor {name!r} has an item of type {kind}: expected bytes or text")
        data = item if isinstance(item, bytes) else item.encode()
        parts += [len(data).to_bytes(4, "little"), data]
    return b"".join(parts)


def decoded(tensor: Any, raw: bytes) -> NDArray[Any]:
    """Returns the array of an output's bytes. Raises `InternalError` if they do not fit its description."""
    shape = tuple(tensor.shape)
    try:
        if tensor.datatype == _BYTES:
            return np.array(_unpacked(raw), object).reshape(shape)
        return np.frombuffer(raw, _TYPES[tensor.datatype]).reshape(shape).copy()
    except (KeyError, ValueError) as error:
        raise InternalError(
            f"output {tensor.name!r} of type {tensor.datatype} and shape {list(shape)} has {len(raw)} bytes, which do "
            "not fit"
        ) from error


def _unpacked(raw: bytes) -> list[bytes]:
    items, position = [], 0
    while position < len(raw):
        end = position + 4 + int.from_bytes(raw[position : position + 4], "little")
        if end > len(raw):
            raise ValueError("an item is cut off")
        items.append(raw[position + 4 : end])
        position = end
    return items
