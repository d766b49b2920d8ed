"""Open Inference tensors <-> numpy arrays. Raw contents are read without a copy."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnserve.datatypes import NUMPY_TYPES
from cnnserve.errors import InvalidInput, Unsupported
from cnnserve.wire import open_inference_pb2 as pb

# No classifier's input has more.
_MAX_RANK = 8
_MAX_SIZE = 2**31 - 1
# Numbers are turned into bytes on the event loop: 32 images of 224 x 224 x 3 take 0.1 s there, raw ones nothing.
_MAX_TYPED = 32 * 224 * 224 * 3
_NAMES = {dtype: name for name, dtype in NUMPY_TYPES.items()}

# FP16 has no typed field: raw only.
_TYPED_FIELDS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}


def read_input(request: pb.ModelInferRequest) -> NDArray[Any]:
    """The array of a request's only input. Raises `InvalidInput` naming the input and what was expected."""
    raw = request.raw_input_contents
    if len(raw) > 1:
        raise InvalidInput(f"raw_input_contents has {len(raw)} entries for 1 input; send one")
    return _read(request.inputs[0], raw[0] if raw else None)


def write_output(response: pb.ModelInferResponse, name: str, array: NDArray[Any]) -> None:
    """Appends an array: always raw, which every client can read."""
    response.outputs.add(name=name, datatype=_NAMES[array.dtype], shape=array.shape)
    response.raw_output_contents.append(array.tobytes())


def _read(tensor: pb.ModelInferRequest.InferInputTensor, raw: bytes | None) -> NDArray[Any]:
    name = tensor.name
    if len(tensor.shape) > _MAX_RANK:
        raise InvalidInput(f"input '{name}' has {len(tensor.shape)} dimensions, at most {_MAX_RANK} are taken")
    shape = tuple(tensor.shape)
    dtype = NUMPY_TYPES.get(tensor.datatype)
    if dtype is None:
        raise InvalidInput(f"input '{name}' has datatype {tensor.datatype!r}, expected one of {', '.join(NUMPY_TYPES)}")
    # Also keeps the product below small enough to be a sensible number.
    if any(not 0 <= size <= _MAX_SIZE for size in shape):
        raise InvalidInput(f"input '{name}' has shape {list(shape)}; every size must be from 0 to {_MAX_SIZE}")
    if "shared_memory_region" in tensor.parameters:
        raise Unsupported(f"input '{name}' asks for shared memory, which this server does not offer; send the bytes")
    count = math.prod(shape)
    if raw is None:
        return _typed(tensor, dtype, count).reshape(shape)
    if tensor.HasField("contents"):
        raise InvalidInput(f"input '{name}' has contents beside raw_input_contents; send one of the two")
    if len(raw) != count * dtype.itemsize:
        raise InvalidInput(
            f"input '{name}' has {len(raw)} bytes, expected {count * dtype.itemsize} "
            f"for {tensor.datatype} {list(shape)}"
        )
    return np.frombuffer(raw, dtype).reshape(shape)


def _typed(tensor: pb.ModelInferRequest.InferInputTensor, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
    if count > _MAX_TYPED:
        raise InvalidInput(
            f"input '{tensor.name}' has {count} values as numbers, at most {_MAX_TYPED} are taken; "
            "send them in raw_input_contents"
        )
    field = _TYPED_FIELDS.get(tensor.datatype)
    if field is None:
        raise InvalidInput(f"input '{tensor.name}' of {tensor.datatype} must be sent in raw_input_contents")
    for other, values in tensor.contents.ListFields():
        if other.name != field:
            raise InvalidInput(f"input '{tensor.name}' of {tensor.datatype} has {other.name}, expected {field}")
        if len(values) != count:
            raise InvalidInput(
                f"input '{tensor.name}' has {len(values)} values, expected {count} for shape {list(tensor.shape)}"
            )
    values = getattr(tensor.contents, field)
    if len(values) != count:
        raise InvalidInput(f"input '{tensor.name}' has no data, expected {count} values for {list(tensor.shape)}")
    wide = np.array(values)
    array = wide.astype(dtype)
    # Small integers travel in wider fields.
    if dtype.kind in "iu" and (array != wide).any():
        wrong = wide[array != wide][0]
        raise InvalidInput(f"input '{tensor.name}' has the value {wrong}, which is no {tensor.datatype}")
    return array
