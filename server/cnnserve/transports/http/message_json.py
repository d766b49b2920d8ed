"""Protobuf messages <-> JSON as Triton's HTTP port has it: with the field names of protobuf, and integers as numbers.

Protobuf's own JSON has other field names, and strings for integers of 64 bits.
"""

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
    """Returns a message's fields by name, including defaults, but without unset messages and members of a oneof."""
    fields: Sequence[Any] = message.DESCRIPTOR.fields
    return {
        field.name: _value(field, getattr(message, field.name))
        for field in fields
        if not field.has_presence or message.HasField(field.name)
    }


def parameter_as_json(parameter: pb.InferParameter) -> bool | int | float | str | None:
    """Returns the value of a parameter, None if it has no value."""
    choice = parameter.WhichOneof("parameter_choice")
    value: bool | int | float | str | None = getattr(parameter, choice) if choice else None
    return value


def parameter_from_json(name: str, value: object) -> pb.InferParameter:
    """Returns the parameter for a JSON value.

    Raises `InvalidInput` for null, arrays, objects and integers of more than 64 bits.
    """
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
    """Returns the shortest number that has the same value as a float32: 0.1, not 0.10000000149011612."""
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
