"""Tensors and the names of their data types in ONNX Runtime, the Open Inference Protocol and numpy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnserve.errors import ModelLoadFailed

_DATATYPES: dict[str, str] = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
}
NUMPY_TYPES: dict[str, np.dtype[Any]] = {
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
# The name in the Open Inference Protocol of each numpy type.
WORDS: dict[np.dtype[Any], str] = {dtype: word for word, dtype in NUMPY_TYPES.items()}

# Rows of a tensor: the first dimension counts them.
Rows = NDArray[Any]


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a model as the ONNX file declares it. A free dimension has the size -1.

    `unbatched`: the file has no dimension for the batch, so a dimension of 1 was put in front.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    unbatched: bool = False

    def zeros(self, count: int) -> NDArray[Any]:
        """Returns `count` rows of zeros. Only the first dimension may be free."""
        return np.zeros((count, *self.shape[1:]), NUMPY_TYPES[self.datatype])


def is_servable(value: Any) -> bool:
    """Returns whether a value that ONNX Runtime describes is a tensor of a type that clients can send and get."""
    return value.type in _DATATYPES


def tensor_spec(value: Any) -> TensorSpec:
    """Returns the spec of a tensor that ONNX Runtime describes.

    Raises `ModelLoadFailed` for a data type that clients cannot send.
    """
    datatype = _DATATYPES.get(value.type)
    if datatype is None:
        known = ", ".join(_DATATYPES)
        raise ModelLoadFailed(f"tensor {value.name!r} has type {value.type}, expected one of {known}")
    return TensorSpec(value.name, datatype, _sizes(value.shape))


def _sizes(shape: Sequence[object]) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) and size >= 0 else -1 for size in shape)
