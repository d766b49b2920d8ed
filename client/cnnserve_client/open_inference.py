"""Messages of `ModelInfer`, the part of the Open Inference Protocol that takes and returns tensors.

protobuf refuses two files that define the same names in one process, and tritonclient brings such a file. So these
messages are built in a descriptor pool of their own, with the fields that the client uses.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

from .arguments import text
from .errors import InternalError, InvalidInputError
from .results import Inference

_PACKAGE: Final = "inference"
_F: Final = descriptor_pb2.FieldDescriptorProto
_TENSOR: Final = ((1, "name", _F.TYPE_STRING), (2, "datatype", _F.TYPE_STRING), (3, "shape", _F.TYPE_INT64))
# By message: number, name and type of each field; a type that is a text is that of another message.
_MESSAGES: Final[dict[str, tuple[tuple[int, str, Any], ...]]] = {
    "Tensor": _TENSOR,
    "Output": ((1, "name", _F.TYPE_STRING),),
    "ModelInferRequest": (
        (1, "model_name", _F.TYPE_STRING),
        (2, "model_version", _F.TYPE_STRING),
        (5, "inputs", "Tensor"),
        (6, "outputs", "Output"),
        (7, "raw_input_contents", _F.TYPE_BYTES),
    ),
    "ModelInferResponse": (
        (1, "model_name", _F.TYPE_STRING),
        (2, "model_version", _F.TYPE_STRING),
        (5, "outputs", "Tensor"),
        (6, "raw_output_contents", _F.TYPE_BYTES),
    ),
}
_REPEATED: Final = ("shape", "inputs", "outputs", "raw_input_contents", "raw_output_contents")


def _message_classes() -> dict[str, type[Message]]:
    file = descriptor_pb2.FileDescriptorProto(name="cnnserve_client/infer.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, field, kind in fields:
            label = _F.LABEL_REPEATED if field in _REPEATED else _F.LABEL_OPTIONAL
            if isinstance(kind, str):
                where = {"type": _F.TYPE_MESSAGE, "type_name": f".{_PACKAGE}.{kind}"}
            else:
                where = {"type": kind}
            message.field.add(name=field, number=number, label=label, **where)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in _MESSAGES
    }


_CLASSES: Final = _message_classes()
REQUEST: Final = _CLASSES["ModelInferRequest"]
RESPONSE: Final = _CLASSES["ModelInferResponse"]


def request(tensors: Mapping[str, Any], outputs: Sequence[str], limit: int, *, model: str, version: str) -> Any:
    """Returns the request for tensors by the names of their inputs. Raises `InvalidInputError`.

    `outputs`: names of the outputs to return, empty for all. `limit`: the largest size of the request in bytes.
    """
    if not isinstance(tensors, Mapping) or not tensors:
        raise InvalidInputError("tensors must be a dict with an array for the name of each input of the model")
    message: Any = REQUEST(
        model_name=text("model", model, "the model's name"),
        model_version=text("version", version, "a version's number or label, or empty"),
    )
    # Importing numpy takes as long as all other imports together, and only callers of `infer` need it.
    from .tensors import encoded  # noqa: PLC0415

    for name, value in tensors.items():
        datatype, shape, raw = encoded(text("tensors", name, "the name of an input"), value)
        message.inputs.add(name=name, datatype=datatype, shape=shape)
        message.raw_input_contents.append(raw)
    for name in outputs:
        message.outputs.add(name=text("outputs", name, "the name of an output"))
    if (size := message.ByteSize()) > limit:
        raise InvalidInputError(
            f"the request has {size} bytes, the client sends at most {limit}: send fewer rows, or raise "
            "max_message_mib of the client and --max-message-mib of the server"
        )
    return message


def result(response: Any) -> Inference:
    """Returns the outputs of a response. Raises `InternalError` if they do not fit their description."""
    if len(response.outputs) != len(response.raw_output_contents):
        raise InternalError(
            f"the server returned {len(response.outputs)} outputs with the data of {len(response.raw_output_contents)}"
        )
    from .tensors import decoded  # noqa: PLC0415

    outputs = {
        tensor.name: decoded(tensor, raw)
        for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }
    return Inference(response.model_name, response.model_version, outputs)
