"""Open Inference tensors <-> numpy arrays and byte strings. Raw contents are read without a copy."""

import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnserve.datatypes import NUMPY_TYPES, WORDS
from cnnserve.errors import InvalidInput
from cnnserve.wire import open_inference_pb2 as pb

# No classifier's input has more.
MAX_RANK = 8
MAX_SIZE = 2**31 - 1
# Numbers are turned into bytes on the event loop: 32 images of 224 x 224 x 3 take 0.1 s there, raw ones nothing.
_MAX_TYPED = 32 * 224 * 224 * 3
BYTES = "BYTES"
# Before each element.
_LENGTH = struct.Struct("<I")

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


Input = pb.ModelInferRequest.InferInputTensor


def check_shape(tensor: Input) -> tuple[int, ...]:
    """The shape of a tensor whose type is known. Raises `InvalidInput` for one that no tensor can have."""
    name = tensor.name
    if len(tensor.shape) > MAX_RANK:
        raise InvalidInput(f"input '{name}' has {len(tensor.shape)} dimensions, at most {MAX_RANK} are taken")
    shape = tuple(tensor.shape)
    if tensor.datatype != BYTES and tensor.datatype not in NUMPY_TYPES:
        known = ", ".join((*NUMPY_TYPES, BYTES))
        raise InvalidInput(f"input '{name}' has datatype {tensor.datatype!r}, expected one of {known}")
    # Also keeps the product below small enough to be a sensible number.
    if any(not 0 <= size <= MAX_SIZE for size in shape):
        raise InvalidInput(f"input '{name}' has shape {list(shape)}; every size must be from 0 to {MAX_SIZE}")
    return shape


def byte_size(tensor: Input) -> int:
    """The bytes of a tensor that `check_shape` let pass; not for BYTES."""
    return math.prod(tensor.shape) * NUMPY_TYPES[tensor.datatype].itemsize


def has_contents(tensor: Input) -> bool:
    """Whether it brings values of its own; an empty message, as MLServer's client sends it, brings none."""
    return bool(tensor.contents.ListFields())


def raw_contents(request: pb.ModelInferRequest) -> bytes | None:
    """The raw bytes of a request's only input; None where it has none. Raises `InvalidInput`."""
    raw = request.raw_input_contents
    if len(raw) > 1:
        raise InvalidInput(f"raw_input_contents has {len(raw)} entries for 1 input; send one")
    if raw and has_contents(request.inputs[0]):
        name = request.inputs[0].name
        raise InvalidInput(f"input '{name}' has contents beside raw_input_contents; send one of the two")
    return raw[0] if raw else None


def read(tensor: Input, raw: bytes | None) -> NDArray[Any]:
    """The array of a tensor that `check_shape` let pass, from raw bytes or its contents. Raises `InvalidInput`."""
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
    """The elements of a BYTES tensor that `check_shape` let pass. Raises `InvalidInput`."""
    count = math.prod(tensor.shape)
    if raw is not None:
        return list(_elements(tensor, raw, count))
    for other, _ in tensor.contents.ListFields():
        if other.name != "bytes_contents":
            raise InvalidInput(f"input '{tensor.name}' of BYTES has {other.name}, expected bytes_contents")
    values = tensor.contents.bytes_contents
    if len(values) != count:
        raise InvalidInput(
            f"input '{tensor.name}' has {len(values)} values, expected {count} for shape {list(tensor.shape)}"
        )
    return list(values)


def write_output(response: pb.ModelInferResponse, name: str, array: NDArray[Any]) -> bytes:
    """Adds an array's description; its bytes are for the caller to place: raw, which every client can read."""
    response.outputs.add(name=name, datatype=WORDS[array.dtype], shape=array.shape)
    return array.tobytes()


def write_strings(response: pb.ModelInferResponse, name: str, shape: Sequence[int], elements: Iterable[bytes]) -> bytes:
    """The same for a BYTES tensor."""
    response.outputs.add(name=name, datatype=BYTES, shape=shape)
    return pack_strings(elements)


def pack_strings(elements: Iterable[bytes]) -> bytes:
    """The raw contents of a BYTES tensor."""
    return b"".join(part for element in elements for part in (_LENGTH.pack(len(element)), element))


def unpack_strings(raw: bytes) -> Iterator[bytes]:
    """The elements that `pack_strings` was given."""
    start = 0
    while start < len(raw):
        (size,) = _LENGTH.unpack_from(raw, start)
        start += _LENGTH.size + size
        yield raw[start - size : start]


def _elements(tensor: Input, raw: bytes, count: int) -> Iterator[bytes]:
    where = f"input '{tensor.name}' of BYTES {list(tensor.shape)}"
    start = 0
    for index in range(count):
        if len(raw) - start < _LENGTH.size:
            raise InvalidInput(f"{where} ends before the length of element {index}")
        (length,) = _LENGTH.unpack_from(raw, start)
        start += _LENGTH.size
        if length > len(raw) - start:
            raise InvalidInput(f"{where}: element {index} has {length} bytes, {len(raw) - start} are left")
        yield raw[start : start + length]
        start += length
    if start < len(raw):
        raise InvalidInput(f"{where} has {len(raw) - start} bytes behind its {count} elements")


def _typed(tensor: Input, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
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
