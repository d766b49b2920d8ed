"""Protobuf messages as JSON the way Triton's HTTP port writes them: its field names, and every number a number."""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from cnnserve.errors import InvalidInput
from cnnserve.wire import open_inference_pb2 as pb

_INT64 = range(-(2**63), 2**63)
_UINT64 = range(2**64)


def as_json(message: Message) -> dict[str, Any]:
    """A message's fields by name: defaults too, but neither unset messages nor the unset ones of a oneof."""
    fields: Sequence[Any] = message.DESCRIPTOR.fields
    return {
        field.name: _value(field, getattr(message, field.name))
        for field in fields
        if not field.has_presence or message.HasField(field.name)
    }


def parameter_as_json(parameter: pb.InferParameter) -> bool | int | float | str | None:
    """The value of a parameter."""
    choice = parameter.WhichOneof("parameter_choice")
    value: bool | int | float | str | None = getattr(parameter, choice) if choice else None
    return value


def parameter_from_json(name: str, value: object) -> pb.InferParameter:
    """The parameter for a JSON value. Raises `InvalidInput` for null, lists, objects and integers beyond 64 bits."""
    match value:
        case bool():
            return pb.InferParameter(bool_param=value)
        case int() if value in _INT64:
            return pb.InferParameter(int64_param=value)
        case int() if value in _UINT64:
            return pb.InferParameter(uint64_param=value)
        case float():
            return pb.InferParameter(double_param=value)
        case str():
            return pb.InferParameter(string_param=value)
    raise InvalidInput(f"parameter '{name}' is {value!r:.100}, expected true, false, a number of 64 bits or a string")


def float32_as_json(value: float) -> float:
    """The shortest number that is the same float32: 0.1, not 0.10000000149011612."""
    return float(str(np.float32(value)))


def _value(field: FieldDescriptor, value: Any) -> Any:
    if hasattr(value, "items"):
        assert field.message_type is not None
        of_entries = field.message_type.fields_by_name["value"]
        return {str(key): _single(of_entries, item) for key, item in value.items()}
    if isinstance(value, bool | int | float | str | bytes | Message):
        return _single(field, value)
    return [_single(field, item) for item in value]


def _single(field: FieldDescriptor, value: Any) -> Any:
    if isinstance(value, Message):
        return as_json(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if field.enum_type is not None:
        named = field.enum_type.values_by_number.get(value)
        return value if named is None else named.name
    if field.type == FieldDescriptor.TYPE_FLOAT:
        return float32_as_json(value)
    return value
