"""The handlers of the routes: they turn HTTP requests into RPCs of the method table, and the responses into JSON."""

import base64
from typing import Any

from google.protobuf import json_format
from starlette.responses import Response

from cnnserve.api import answer_size
from cnnserve.api.methods import INFERENCE
from cnnserve.errors import InvalidInput
from cnnserve.transports.http import infer_json
from cnnserve.transports.http.answers import answer
from cnnserve.transports.http.body import MAX_JSON_BYTES
from cnnserve.transports.http.exchange import Exchange
from cnnserve.transports.http.message_json import as_json
from cnnserve.transports.http.packing import packed
from cnnserve.wire import open_inference_pb2 as pb

_HALF_A_PAIR = "a string of the request has half a surrogate pair"
MODEL_METADATA = f"{INFERENCE}/ModelMetadata"


async def message(exchange: Exchange) -> Response:
    """Returns the fields of the RPC's response."""
    return answer(as_json(await exchange.ask()))


async def server_ready(exchange: Exchange) -> Response:
    """Returns whether the server is ready: with status 200 if it is, 503 if not."""
    ready = (await exchange.ask()).ready
    return answer({"ready": ready}, 200 if ready else 503)


async def model_ready(exchange: Exchange) -> Response:
    """Returns whether the model is ready: with status 200 if it is, 503 if not."""
    ready = (await exchange.ask()).ready
    return answer({"name": exchange.path["name"], "ready": ready}, 200 if ready else 503)


async def model_config(exchange: Exchange) -> Response:
    """Returns the config without the message around it."""
    return answer(as_json((await exchange.ask()).config))


async def model_infer(exchange: Exchange) -> Response:
    """Returns the outputs of a model for its input, each tensor as JSON or as binary data."""
    headers = exchange.request.headers
    length_text = headers.get(infer_json.HEADER_LENGTH)
    model, version = exchange.path["model_name"], exchange.path.get("model_version", "")
    with exchange.body() as reader:
        body = await reader.whole(MAX_JSON_BYTES if length_text is None else None)
        length = infer_json.header_length(length_text, body)
        if length == 0:
            request, wanted = await _raw(exchange, body, model, version)
        else:
            size = len(body) if length is None else length
            request, wanted = await exchange.limits.aside.run(size, infer_json.read_request, body, size, model, version)
        del body
    # From here on, the RPC's handler holds the memory for the tensor.
    outputs = await exchange.ask(request)
    size = infer_json.json_size(outputs, wanted)
    response = await exchange.limits.aside.run(size, infer_json.write_response, outputs, wanted)
    answer_size.check(len(response.body), exchange.limits.max_body_bytes, "ask for binary data (binary_data_output)")
    return await packed(exchange.request, response)


async def repository_index(exchange: Exchange) -> Response:
    """Returns a list with one row for each version."""
    ready = (await exchange.object()).get("ready", False)
    if not isinstance(ready, bool):
        raise InvalidInput(f"ready is {ready!r:.100}, expected true or false")
    index = await exchange.ask(pb.RepositoryIndexRequest(**exchange.path, ready=ready))
    return answer([as_json(model) for model in index.models])


async def repository_change(exchange: Exchange) -> Response:
    """Loads or unloads a model, then returns {}."""
    parameters = (await exchange.object()).get("parameters", {})
    if not isinstance(parameters, dict):
        raise InvalidInput(f"parameters is {parameters!r:.100}, expected an object")
    request: Any = exchange.method.request(**exchange.path)
    try:
        for name, value in parameters.items():
            request.parameters[name].CopyFrom(_repository_parameter(name, value))
    except UnicodeEncodeError as error:
        raise InvalidInput(f"{_HALF_A_PAIR}: {error}") from error
    await exchange.ask(request)
    return answer({})


async def shared_memory_status(exchange: Exchange) -> Response:
    """Returns a list of regions."""
    status = await exchange.ask()
    return answer([as_json(region) for region in status.regions.values()])


async def shared_memory_register(exchange: Exchange) -> Response:
    """Registers the region that the body describes by key, offset and byte_size, then returns {}."""
    value = await exchange.object()
    try:
        request = pb.SystemSharedMemoryRegisterRequest(
            **exchange.path, key=value.get("key"), offset=value.get("offset"), byte_size=value.get("byte_size")
        )
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"key must be a string, offset and byte_size integers of 0 or more: {error}") from error
    await exchange.ask(request)
    return answer({})


async def empty(exchange: Exchange) -> Response:
    """Calls the route's RPC, then returns {}."""
    await exchange.ask()
    return answer({})


async def settings(exchange: Exchange) -> Response:
    """Returns the values of settings by name. The RPC decides whether the body may change some."""
    request: Any = exchange.method.request(**exchange.path)
    wanted = await exchange.object() if exchange.request.method == "POST" else {}
    try:
        for name, value in wanted.items():
            setting = request.settings[name]
            json_format.ParseDict(
                _trace(value) if "value" in setting.DESCRIPTOR.fields_by_name else _log(value), setting
            )
    except UnicodeEncodeError as error:
        raise InvalidInput(f"{_HALF_A_PAIR}: {error}") from error
    except json_format.ParseError as error:
        raise InvalidInput(f"a setting has a value of the wrong type: {error}") from error
    found = await exchange.ask(request)
    return answer({name: next(iter(as_json(value).values()), None) for name, value in found.settings.items()})


async def _raw(
    exchange: Exchange, body: bytes, model: str, version: str
) -> tuple[pb.ModelInferRequest, infer_json.Wanted]:
    metadata = await exchange.ask(pb.ModelMetadataRequest(name=model, version=version), MODEL_METADATA)
    return infer_json.raw_request(body, metadata, model, version)


def _repository_parameter(name: str, value: object) -> pb.ModelRepositoryParameter:
    match value:
        case bool():
            return pb.ModelRepositoryParameter(bool_param=value)
        case int() if -(2**63) <= value < 2**63:
            return pb.ModelRepositoryParameter(int64_param=value)
        case str() if name.startswith("file:"):
            try:
                return pb.ModelRepositoryParameter(bytes_param=base64.b64decode(value, validate=True))
            except ValueError as error:
                raise InvalidInput(f"parameter '{name:.100}' is not valid base64: {error}") from error
        case str():
            return pb.ModelRepositoryParameter(string_param=value)
    raise InvalidInput(f"parameter '{name:.100}' is {value!r:.100}, expected true, false, an integer or a string")


def _trace(value: object) -> dict[str, Any]:
    """Returns the JSON of a trace setting's message. A single string needs no list; null resets the setting."""
    return {"value": [value] if isinstance(value, str) else value}


def _log(value: object) -> dict[str, Any]:
    """Returns the JSON of a log setting's message."""
    match value:
        case bool():
            return {"bool_param": value}
        case int():
            return {"uint32_param": value}
    return {"string_param": value}
