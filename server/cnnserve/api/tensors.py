"""Open Inference tensors <-> numpy arrays and byte strings. Raw contents of numbers are read without a copy."""

import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnserve.datatypes import NUMPY_TYPES, WORDS
from cnnserve.errors import InvalidInput
from cnnserve.wire import open_inference_pb2 as pb

# No classifier's input has more dimensions.
MAX_RANK = 8
MAX_SIZE = 2**31 - 1
# Typed contents are converted on the event loop: 32 images of 224 x 224 x 3 take 0.1 s there. Raw contents need no
# conversion.
_MAX_TYPED = 32 * 224 * 224 * 3
BYTES = "BYTES"
# The length in bytes of an element, before the element.
_LENGTH = struct.Struct("<I")

# FP16 has no typed field, so it can only be sent as raw contents.
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


Input = pb.ModelInferRequest.InferInputTensor


def check_shape(tensor: Input) -> tuple[int, ...]:
    """Returns the shape of a tensor. Raises `InvalidInput` if its data type is unknown or its shape above a limit."""
    name = tensor.name
    if len(tensor.shape) > MAX_RANK:
        raise InvalidInput(f"input '{name}' has {len(tensor.shape)} dimensions, the limit is {MAX_RANK}")
    shape = tuple(tensor.shape)
    if tensor.datatype != BYTES and tensor.datatype not in NUMPY_TYPES:
        known = ", ".join((*NUMPY_TYPES, BYTES))
        raise InvalidInput(f"input '{name}' has datatype {tensor.datatype!r}, expected one of {known}")
    # This also bounds the product of the sizes, which `byte_size` computes.
    if any(not 0 <= size <= MAX_SIZE for size in shape):
        raise InvalidInput(f"input '{name}' has shape {list(shape)}; every size must be from 0 to {MAX_SIZE}")
    return shape


def byte_size(tensor: Input) -> int:
    """Returns the number of bytes of a tensor that has passed `check_shape`. Not for BYTES."""
    return math.prod(tensor.shape) * NUMPY_TYPES[tensor.datatype].itemsize


def has_contents(tensor: Input) -> bool:
    """Returns whether the tensor has typed contents. MLServer's client sends an empty message, which is none."""
    return bool(tensor.contents.ListFields())


def raw_contents(request: pb.ModelInferRequest) -> bytes | None:
    """Returns the raw contents of a request's only input; None if there are none.

    Raises `InvalidInput` for several raw contents, and for typed contents beside raw contents.
    """
    raw = request.raw_input_contents
    if len(raw) > 1:
        raise InvalidInput(f"raw_input_contents has {len(raw)} entries for 1 input; send one")
    if raw and has_contents(request.inputs[0]):
        name = request.inputs[0].name
        raise InvalidInput(f"input '{name}' has both contents and raw_input_contents; send only one of them")
    return raw[0] if raw else None


def read(tensor: Input, raw: bytes | None) -> NDArray[Any]:
    """Returns the array of a tensor that has passed `check_shape`; `raw` None: from its typed contents.

    Raises `InvalidInput` if the contents do not match data type and shape.
    """
    shape, dtype = tuple(tensor.shape), NUMPY_TYPES[tensor.datatype]
    if raw is None:
        return _typed(tensor, dtype, math.prod(shape)).reshape(shape)
    if len(raw) != byte_size(tensor):
        raise InvalidInput(
            f"input '{tensor.name}' has {len(raw)} bytes, expected {byte_size(tensor)} for {tensor.datatype} "
            f"{list(shape)}"
        )
    return np.frombuffer(raw, dtype).reshape(shape)


def read_strings(tensor: Input, raw: bytes | None) -> list[bytes]:
    """Returns the elements of a BYTES tensor that has passed `check_shape`; `raw` None: from its typed contents.

    Raises `InvalidInput` if the contents do not match the shape.
    """
    count = math.prod(tensor.shape)
    if raw is not None:
        return list(_elements(tensor, raw, count))
    for other, _ in tensor.contents.ListFields():
        if other.name != "bytes_contents":
            raise InvalidInput(f"input '{tensor.name}' of type BYTES has {other.name}, expected bytes_contents")
    values = tensor.contents.bytes_contents
    if len(values) != count:
        raise InvalidInput(
            f"input '{tensor.name}' has {len(values)} values, expected {count} for shape {list(tensor.shape)}"
        )
    return list(values)


def write_output(response: pb.ModelInferResponse, name: str, array: NDArray[Any]) -> bytes:
    """Adds an array's description to the response and returns its bytes, for the caller to put somewhere.

    They are raw contents, because every client can read these.
    """
    response.outputs.add(name=name, datatype=WORDS[array.dtype], shape=array.shape)
    return array.tobytes()


def write_strings(response: pb.ModelInferResponse, name: str, shape: Sequence[int], elements: Iterable[bytes]) -> bytes:
    """Adds a BYTES tensor's description to the response and returns its raw contents."""
    response.outputs.add(name=name, datatype=BYTES, shape=shape)
    return pack_strings(elements)


def pack_strings(elements: Iterable[bytes]) -> bytes:
    """Returns the raw contents of a BYTES tensor with these elements."""
    return b"".join(part for element in elements for part in (_LENGTH.pack(len(element)), element))


def unpack_strings(raw: bytes) -> Iterator[bytes]:
    """Yields the elements of raw contents that `pack_strings` has made."""
    start = 0
    while start < len(raw):
        (size,) = _LENGTH.unpack_from(raw, start)
        start += _LENGTH.size + size
        yield raw[start - size : start]


def _elements(tensor: Input, raw: bytes, count: int) -> Iterator[bytes]:
    where = f"input '{tensor.name}' of type BYTES and shape {list(tensor.shape)}"
    start = 0
    for index in range(count):
        if len(raw) - start < _LENGTH.size:
            raise InvalidInput(f"{where} ends before the length of element {index}")
        (length,) = _LENGTH.unpack_from(raw, start)
        start += _LENGTH.size
        if length > len(raw) - start:
            raise InvalidInput(f"{where}: element {index} has {length} bytes, but only {len(raw) - start} are left")
        yield raw[start : start + length]
        start += length
    if start < len(raw):
        raise InvalidInput(f"{where} has {len(raw) - start} bytes after its {count} elements; leave them out")


def _typed(tensor: Input, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
    if count > _MAX_TYPED:
        raise InvalidInput(
            f"input '{tensor.name}' has {count} values in typed contents, the limit is {_MAX_TYPED}; send them in "
            "raw_input_contents"
        )
    field = _TYPED_FIELDS.get(tensor.datatype)
    if field is None:
        raise InvalidInput(f"input '{tensor.name}' of type {tensor.datatype} must be sent in raw_input_contents")
    for other, values in tensor.contents.ListFields():
        if other.name != field:
            raise InvalidInput(f"input '{tensor.name}' of type {tensor.datatype} has {other.name}, expected {field}")
        if len(values) != count:
            raise InvalidInput(
                f"input '{tensor.name}' has {len(values)} values, expected {count} for shape {list(tensor.shape)}"
            )
    values = getattr(tensor.contents, field)
    if len(values) != count:
        raise InvalidInput(f"input '{tensor.name}' has no values, expected {count} for shape {list(tensor.shape)}")
    wide = np.array(values)
    array = wide.astype(dtype)
    # Integers of 8 and 16 bits have fields of 32 bits, so a value may not fit.
    if dtype.kind in "iu" and (array != wide).any():
        wrong = wide[array != wide][0]
        raise InvalidInput(f"input '{tensor.name}' has the value {wrong}, which does not fit into {tensor.datatype}")
    return array
