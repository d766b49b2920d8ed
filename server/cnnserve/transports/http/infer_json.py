"""Reads a ModelInfer request from JSON and binary data, and writes the response in the form the request asks for."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import Response

from cnnserve.api.shared_memory import REGION
from cnnserve.api.tensors import MAX_RANK, MAX_SIZE
from cnnserve.datatypes import NUMPY_TYPES
from cnnserve.errors import InvalidInput
from cnnserve.transports.http import answers
from cnnserve.transports.http.body import read_object
from cnnserve.transports.http.message_json import parameter_as_json, parameter_from_json
from cnnserve.transports.http.tensor_json import json_from_raw, raw_from_json
from cnnserve.wire import open_inference_pb2 as pb

HEADER_LENGTH = "Inference-Header-Content-Length"
# They take 0.1 s to 0.2 s of a thread. Binary data takes no time.
_MAX_JSON_VALUES = 250_000
# The size of a value in JSON. A slice of values is written in about 1 ms.
_VALUE_BYTES = 20
_SLICE = 4096


@dataclass
class Wanted:
    """Which outputs are sent as binary data: the request's default, and its choices for single outputs."""

    binary: bool = False
    by_name: dict[str, bool] = field(default_factory=dict)

    def is_binary(self, name: str) -> bool:
        """Returns whether the output `name` is sent as binary data."""
        return self.by_name.get(name, self.binary)


def header_length(text: str | None, body: bytes) -> int | None:
    """Returns the length in bytes of the JSON before the binary data; None: the whole body. Raises `InvalidInput`."""
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and int(text) <= len(body)):
        raise InvalidInput(
            f"{HEADER_LENGTH} is {text[:100]!r}, expected an integer from 0 to the body's length, {len(body)}"
        )
    return int(text)


def read_request(body: bytes, length: int, model: str, version: str) -> tuple[pb.ModelInferRequest, Wanted]:
    """Returns the message for a body whose first `length` bytes are JSON. Raises `InvalidInput`."""
    value = read_object(body[:length])
    binary = memoryview(body)[length:]
    request = pb.ModelInferRequest(model_name=model, model_version=version)
    wanted = Wanted()
    try:
        request.id = _text(value, "id", "the request")
        parameters = _parameters(value, "the request")
        wanted.binary = _flag(parameters, "binary_data_output", "the request") or False
        _set_parameters(request.parameters, parameters)
        for item in _objects(value, "inputs"):
            binary = _add_input(request, item, binary)
        for item in _objects(value, "outputs"):
            _add_output(request, item, wanted)
    except UnicodeEncodeError as error:
        raise InvalidInput(f"a string of the request has half a surrogate pair: {error}") from error
    if len(binary):
        raise InvalidInput(
            f"the body has {len(binary)} bytes after the binary data of its inputs; correct their binary_data_size"
        )
    return request, wanted


def raw_request(
    body: bytes, metadata: pb.ModelMetadataResponse, model: str, version: str
) -> tuple[pb.ModelInferRequest, Wanted]:
    """Returns the message for a body that consists of the bytes of a model's only input. Raises `InvalidInput`."""
    request = pb.ModelInferRequest(model_name=model, model_version=version)
    for tensor in metadata.inputs:
        shape = list(tensor.shape)
        if shape.count(-1) > 1:
            # The first dimension is that of the batch. One row leaves one open size, which the bytes determine.
            shape[0] = 1
        if shape.count(-1) > 1:
            raise InvalidInput(
                f"input '{tensor.name}' has shape {list(tensor.shape)}, whose open sizes do not follow from the number "
                "of bytes; send a JSON header"
            )
        if -1 in shape:
            shape[shape.index(-1)] = _rows(tensor, shape, body)
        request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=shape)
        request.raw_input_contents.append(body)
    return request, Wanted(binary=True)


def json_size(response: pb.ModelInferResponse, wanted: Wanted) -> int:
    """Returns about how many bytes of JSON the response has. Raises `InvalidInput` if it has too many values."""
    values = sum(
        math.prod(output.shape)
        for output in response.outputs
        if REGION not in output.parameters and not wanted.is_binary(output.name)
    )
    if values > _MAX_JSON_VALUES:
        raise InvalidInput(
            f"the response has {values} values as JSON, the limit is {_MAX_JSON_VALUES}; ask for binary data "
            "(binary_data_output)"
        )
    return values * _VALUE_BYTES


def write_response(response: pb.ModelInferResponse, wanted: Wanted) -> Response:
    """Returns the response as JSON, followed by binary data if the request asks for it.

    Raises `InvalidInput` if JSON cannot represent a value.
    """
    value: dict[str, Any] = {"model_name": response.model_name, "model_version": response.model_version}
    if response.id:
        value["id"] = response.id
    if response.parameters:
        value["parameters"] = _parameters_as_json(response.parameters)
    outputs: list[bytes] = []
    binary: list[bytes] = []
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        item: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": list(output.shape)}
        parameters = _parameters_as_json(output.parameters)
        data: list[Any] | None = None
        if REGION in output.parameters:
            pass
        elif wanted.is_binary(output.name):
            parameters["binary_data_size"] = len(raw)
            binary.append(raw)
        else:
            data = json_from_raw(output.name, output.datatype, raw)
        if parameters:
            item["parameters"] = parameters
        outputs.append(_extended(item, data) if data is not None else answers.encode(item))
    header = b"".join([answers.encode(value)[:-1], b',"outputs":[', b",".join(outputs), b"]}"])
    if not binary:
        return Response(header, media_type="application/json")
    headers = {HEADER_LENGTH: str(len(header))}
    return Response(b"".join([header, *binary]), headers=headers, media_type="application/octet-stream")


def _extended(item: dict[str, Any], values: list[Any]) -> bytes:
    """Returns the JSON of an output with its values, written in slices: see `aside`."""
    slices = [answers.encode(values[start : start + _SLICE])[1:-1] for start in range(0, len(values), _SLICE)]
    return b"".join([answers.encode(item)[:-1], b',"data":[', b",".join(slices), b"]}"])


def _rows(tensor: pb.ModelMetadataResponse.TensorMetadata, shape: list[int], body: bytes) -> int:
    size = math.prod(length for length in shape if length != -1) * NUMPY_TYPES[tensor.datatype].itemsize
    if size == 0 or len(body) % size:
        raise InvalidInput(
            f"the body has {len(body)} bytes, expected a multiple of {size} for input '{tensor.name}' of type "
            f"{tensor.datatype} and shape {list(tensor.shape)}"
        )
    return len(body) // size


def _add_input(request: pb.ModelInferRequest, item: dict[str, Any], binary: memoryview) -> memoryview:
    name, datatype = _text(item, "name", "an input"), _text(item, "datatype", "an input")
    where = f"input '{name:.100}'"
    shape = _shape(item, where)
    parameters = _parameters(item, where)
    size = parameters.pop("binary_data_size", None)
    tensor = request.inputs.add(name=name, datatype=datatype, shape=shape)
    _set_parameters(tensor.parameters, parameters)
    if REGION in parameters:
        return binary
    if size is None:
        if "data" not in item:
            raise InvalidInput(f"{where} has neither data nor binary_data_size; send one of them")
        request.raw_input_contents.append(raw_from_json(name, datatype, shape, item["data"]))
        return binary
    if "data" in item:
        raise InvalidInput(f"{where} has both data and binary_data_size; send only one of them")
    if type(size) is not int or not 0 <= size <= len(binary):
        raise InvalidInput(
            f"{where} has binary_data_size {size!r:.100}, expected an integer from 0 to {len(binary)}, the number of "
            "bytes that are left in the body"
        )
    request.raw_input_contents.append(bytes(binary[:size]))
    return binary[size:]


def _add_output(request: pb.ModelInferRequest, item: dict[str, Any], wanted: Wanted) -> None:
    name = _text(item, "name", "an output")
    parameters = _parameters(item, f"output '{name:.100}'")
    is_binary = _flag(parameters, "binary_data", f"output '{name:.100}'")
    if is_binary is not None:
        wanted.by_name[name] = is_binary
    _set_parameters(request.outputs.add(name=name).parameters, parameters)


def _shape(item: dict[str, Any], where: str) -> list[int]:
    shape = item.get("shape")
    if not isinstance(shape, list) or len(shape) > MAX_RANK:
        raise InvalidInput(f"{where} has shape {shape!r:.100}, expected a list of at most {MAX_RANK} sizes")
    for size in shape:
        if type(size) is not int or not 0 <= size <= MAX_SIZE:
            raise InvalidInput(f"{where} has shape with size {size!r:.100}, expected integers from 0 to {MAX_SIZE}")
    return shape


def _text(item: dict[str, Any], key: str, where: str) -> str:
    value = item.get(key, "")
    if not isinstance(value, str):
        raise InvalidInput(f"{key} of {where} is {json.dumps(value):.100}, expected a string")
    return value


def _objects(value: dict[str, Any], key: str) -> list[dict[str, Any]]:
    items = value.get(key, [])
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise InvalidInput(f"{key} is {json.dumps(items):.100}, expected a list of objects")
    return items


def _parameters(item: dict[str, Any], where: str) -> dict[str, Any]:
    value = item.get("parameters", {})
    if not isinstance(value, dict):
        raise InvalidInput(f"parameters of {where} is {json.dumps(value):.100}, expected an object")
    return dict(value)


def _flag(parameters: dict[str, Any], name: str, where: str) -> bool | None:
    value = parameters.pop(name, None)
    if value is not None and not isinstance(value, bool):
        raise InvalidInput(f"parameter '{name}' of {where} is {json.dumps(value):.100}, expected true or false")
    return value


def _set_parameters(target: Any, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        target[name].CopyFrom(parameter_from_json(name, value))


def _parameters_as_json(parameters: Mapping[str, pb.InferParameter]) -> dict[str, Any]:
    return {name: parameter_as_json(parameter) for name, parameter in parameters.items()}
