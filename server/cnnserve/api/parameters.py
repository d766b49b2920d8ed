"""Reads parameters of the Open Inference Protocol: values by name, each of one of a few types."""

from collections.abc import Mapping

from cnnserve.errors import InvalidInput
from cnnserve.wire import open_inference_pb2 as pb

Parameters = Mapping[str, pb.InferParameter]

FINAL_RESPONSE = "triton_enable_empty_final_response"
_RESERVED = "triton_"


def check_reserved(parameters: Parameters) -> None:
    """Raises `InvalidInput` if a parameter has a name that the protocol reserves."""
    for name in parameters:
        if name.startswith(_RESERVED) and name != FINAL_RESPONSE:
            raise InvalidInput(f"parameter '{name}' has a reserved name; names must not begin with {_RESERVED}")


def integer(parameters: Parameters, name: str, *, kinds: tuple[str, ...] = ("int64_param", "uint64_param")) -> int:
    """Returns an integer of 0 or more; 0 if it is absent. Raises `InvalidInput` for other values."""
    if name not in parameters:
        return 0
    choice, value = _value(parameters[name])
    if choice not in kinds or not isinstance(value, int) or value < 0:
        raise InvalidInput(f"parameter '{name}' is {value!r} ({choice}), expected an {kinds[0]} of 0 or more")
    return value


def flag(parameters: Parameters, name: str) -> bool:
    """Returns a boolean; False if it is absent. Raises `InvalidInput` for other values."""
    if name not in parameters:
        return False
    choice, value = _value(parameters[name])
    if not isinstance(value, bool):
        raise InvalidInput(f"parameter '{name}' is {value!r} ({choice}), expected a bool_param")
    return value


def text(parameters: Parameters, name: str) -> str:
    """Returns a string, which must be present. Raises `InvalidInput` for an empty string and other values."""
    choice, value = _value(parameters[name])
    if not isinstance(value, str) or not value:
        raise InvalidInput(f"parameter '{name}' is {value!r} ({choice}), expected a string_param that is not empty")
    return value


def _value(parameter: pb.InferParameter) -> tuple[str | None, object]:
    choice = parameter.WhichOneof("parameter_choice")
    return choice, getattr(parameter, choice) if choice else None
