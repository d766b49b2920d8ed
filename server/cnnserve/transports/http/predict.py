"""`:predict`, as the clients of TensorFlow Serving and KServe call it: rows in, outputs for each row out."""

import math
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

from cnnserve.api.methods import INFERENCE
from cnnserve.api.tensors import BYTES, MAX_RANK, pack_strings
from cnnserve.errors import InvalidInput
from cnnserve.transports.http import base64_json, infer_json
from cnnserve.transports.http.answers import answer
from cnnserve.transports.http.exchange import Exchange
from cnnserve.transports.http.query import check_query
from cnnserve.transports.http.tensor_json import json_from_raw, raw_from_json
from cnnserve.wire import open_inference_pb2 as pb

_METADATA = f"{INFERENCE}/ModelMetadata"
_INSTANCES, _SIGNATURE = "instances", "signature_name"
# The clients of KServe and TensorFlow Serving often name an encoded image so, whatever the model calls its input.
_IMAGE_BYTES = "image_bytes"


@dataclass(frozen=True)
class _Instances:
    """Images, or the rows of a tensor, nested as in its shape. `named`: the inputs that instances name, in order."""

    images: list[bytes]
    rows: list[Any]
    named: tuple[str, ...] = ()


async def predict(exchange: Exchange) -> Response:
    """Returns one prediction for each instance: the values of the output, or an object if there are several outputs."""
    check_query(exchange.request, ())
    model, version = exchange.path["model"], exchange.path.get("version", "")
    aside = exchange.limits.aside
    with exchange.body() as reader:
        body = await reader.whole(fix=base64_json.AS_FILES)
        size = len(body)
        instances = await aside.run(size, _read, body)
        del body
        metadata = await exchange.ask(pb.ModelMetadataRequest(name=model, version=version), _METADATA)
        request = await aside.run(size, _request, instances, metadata, model, version)
        del instances
    response = await exchange.ask(request)
    size = infer_json.json_size(response, infer_json.Wanted())
    return await aside.run(size, _answer, response)


def _read(body: bytes) -> _Instances:
    value = base64_json.read(body)
    instances = value.pop(_INSTANCES, None)
    value.pop(_SIGNATURE, None)
    if value:
        raise InvalidInput(
            f"the body has the unknown key {next(iter(value))!r:.100}, expected {_INSTANCES} (and {_SIGNATURE})"
        )
    if not isinstance(instances, list) or not instances:
        raise InvalidInput(f"{_INSTANCES} is {instances!r:.100}, expected a list with one item for each row")
    named: dict[str, None] = {}
    instances = [_unnamed(item, named) for item in instances]
    if not any(base64_json.is_image(item) for item in instances):
        return _Instances([], instances, tuple(named))
    if not all(base64_json.is_image(item) for item in instances):
        raise InvalidInput(f"{_INSTANCES} has both images ({base64_json.KEY}) and other values; send one kind")
    images = [base64_json.take(item, f"instance {index}") for index, item in enumerate(instances)]
    return _Instances(images, [], tuple(named))


def _unnamed(item: Any, named: dict[str, None]) -> Any:
    """Returns the value of `{"INPUT": value}` and adds the name to `named`; any other value is returned as it is."""
    if not isinstance(item, dict) or base64_json.is_image(item):
        return item
    if len(item) != 1:
        names = ", ".join(item)[:200]
        raise InvalidInput(f"an instance has the keys {names!r}, expected {base64_json.KEY} or the name of one input")
    ((name, value),) = item.items()
    named[name] = None
    return value


def _request(
    instances: _Instances, metadata: pb.ModelMetadataResponse, model: str, version: str
) -> pb.ModelInferRequest:
    if len(metadata.inputs) != 1:
        raise InvalidInput(f"model '{model}' has {len(metadata.inputs)} inputs; use /v2/models/{model}/infer")
    (tensor,) = metadata.inputs
    right = (tensor.name, _IMAGE_BYTES) if instances.images else (tensor.name,)
    for name in instances.named:
        if name not in right:
            raise InvalidInput(f"an instance has the input {name!r:.100}, the input of '{model}' is {tensor.name!r}")
    request = pb.ModelInferRequest(model_name=model, model_version=version)
    if instances.images:
        request.inputs.add(name=tensor.name, datatype=BYTES, shape=[len(instances.images), 1])
        request.raw_input_contents.append(pack_strings(iter(instances.images)))
        return request
    shape = _shape(instances.rows)
    request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=shape)
    request.raw_input_contents.append(raw_from_json(tensor.name, tensor.datatype, shape, instances.rows))
    return request


def _shape(rows: Any) -> list[int]:
    """Returns the shape of nested lists, as their first items have it."""
    shape: list[int] = []
    while isinstance(rows, list) and len(shape) < MAX_RANK:
        shape.append(len(rows))
        rows = rows[0] if rows else None
    return shape


def _answer(response: pb.ModelInferResponse) -> Response:
    columns = {
        output.name: _rows(json_from_raw(output.name, output.datatype, raw), list(output.shape))
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }
    if len(columns) == 1:
        (predictions,) = columns.values()
        return answer({"predictions": predictions})
    rows = zip(*columns.values(), strict=True)
    return answer({"predictions": [dict(zip(columns, row, strict=True)) for row in rows]})


def _rows(values: list[Any], shape: list[int]) -> list[Any]:
    """Returns flat values, nested as in the shape."""
    if len(shape) < 2:
        return values
    size = math.prod(shape[1:])
    return [_rows(values[start : start + size], shape[1:]) for start in range(0, shape[0] * size, size or 1)]
