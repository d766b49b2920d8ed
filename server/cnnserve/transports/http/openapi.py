"""The OpenAPI 3.1 document of the routes that the server serves."""

import re
from collections.abc import Iterable
from typing import Any

import cnnserve
from cnnserve.model.classification import DEFAULT_TOP_K
from cnnserve.transports.http.body import MAX_JSON_BYTES
from cnnserve.transports.http.infer_json import HEADER_LENGTH
from cnnserve.transports.http.routes import Operation
from cnnserve.transports.http.schemas import SCHEMAS
from cnnserve.transports.http.scraping import OPEN_METRICS, PLAIN

_JSON = "application/json"
_BINARY = "application/octet-stream"
_ERRORS = {
    400: "A value is not valid; the text names the value",
    401: "The server has tokens, and the request has no valid one",
    403: "The client's scopes or the server's settings do not permit the request",
    404: "The model, the version or the shared memory region does not exist",
    408: "The client stopped sending the body",
    409: "The load failed, the server's mode has no loads by call, or the shared memory region exists already",
    413: "The body is too large",
    415: "The content-type or content-encoding is not supported",
    429: "The model's queue or the server's memory is full (Retry-After says when to retry), or a limit is reached",
    500: "Internal error; the server's log has the cause",
    501: "The server does not support the request",
    503: "The model or the server is not ready, or the server is shutting down",
    504: "The deadline passed before the response was complete",
}


def document(operations: Iterable[Operation], max_body_bytes: int) -> dict[str, Any]:
    """Returns the document that `/openapi.json` serves."""
    paths: dict[str, Any] = {"/openapi.json": {"get": _itself()}}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "cnnserve",
            "version": cnnserve.__version__,
            "description": "Image classification. /v2 is the Open Inference Protocol with Triton's extensions, /v1 "
            f"takes images. Bodies have at most {max_body_bytes} bytes, JSON bodies at most {MAX_JSON_BYTES} bytes. "
            "Clients may compress bodies with gzip or deflate (Content-Encoding).",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        # If the server has tokens.
        "security": [{}, {"token": []}],
        "components": {"schemas": SCHEMAS, "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
    }


def _itself() -> dict[str, Any]:
    return {
        "operationId": "OpenApi",
        "summary": "This document",
        "responses": {
            "200": _answer("This document", "Object"),
            **{str(code): _answer(_ERRORS[code], "Error") for code in (401, 403)},
        },
    }


def _operation(operation: Operation) -> dict[str, Any]:
    value: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "parameters": [*_path_parameters(operation.path), *_parameters(operation)],
        "responses": {
            "200": _answer("OK", operation.answer, binary=operation.body == "Inference"),
            **{str(code): _answer(_ERRORS[code], "Error") for code in sorted(operation.errors)},
        },
    }
    if operation.answer == "Metrics":
        text = {"schema": {"type": "string"}}
        value["responses"]["200"]["content"] = {PLAIN: text, OPEN_METRICS: text}
    if operation.answer in ("Ready", "ModelReady"):
        # If the model or the server is not ready, the response is the regular one, with status 503.
        either = {"anyOf": [_ref(operation.answer), _ref("Error")]}
        value["responses"]["503"]["content"][_JSON]["schema"] = either
    if operation.body:
        value["requestBody"] = _body(operation.body)
    return value


def _path_parameters(path: str) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in re.findall(r"\{(\w+)\}", path)
    ]


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    timeout = "Timeout: at most 8 digits and a unit (H, M, S, m, u or n), such as 250m for 250 ms (default: none)"
    if not operation.rpc:
        return []
    found = [_parameter("Grpc-Timeout", "header", {"type": "string", "pattern": "^[0-9]{1,8}[HMSmun]$"}, timeout)]
    if operation.body == "Inference":
        text = "Length of the JSON at the start of the body, in bytes (default: the whole body)"
        raw = "0: the body consists of the bytes of the model's only input"
        found.append(_parameter(HEADER_LENGTH, "header", {"type": "integer", "minimum": 0}, f"{text}; {raw}"))
    if operation.body == "Images":
        limits = {"type": "integer", "minimum": 0, "maximum": 999_999_999}
        text = f"Number of classes per image, at most all of the model (default, and 0: {DEFAULT_TOP_K})"
        found.append(_parameter("top_k", "query", limits, text))
    return found


def _parameter(name: str, where: str, schema: dict[str, Any], text: str) -> dict[str, Any]:
    return {"name": name, "in": where, "required": False, "description": text, "schema": schema}


def _body(kind: str) -> dict[str, Any]:
    if kind == "Images":
        image: dict[str, Any] = {}
        form = {
            "schema": {
                "type": "object",
                "properties": {"image": {"type": "array", "items": {"type": "string", "contentMediaType": _BINARY}}},
            },
        }
        kinds = ("image/jpeg", "image/png", "image/*", _BINARY)
        images: dict[str, Any] = {"schema": _ref("ImagesRequest")}
        return {
            "required": True,
            "content": {**dict.fromkeys(kinds, image), "multipart/form-data": form, _JSON: images},
        }
    content: dict[str, Any] = {_JSON: {"schema": _ref(f"{kind}Request")}}
    if kind == "Inference":
        content[_BINARY] = {}
    return {"required": kind in ("Inference", "Instances"), "content": content}


def _answer(text: str, schema: str, *, binary: bool = False) -> dict[str, Any]:
    content: dict[str, Any] = {_JSON: {"schema": _ref(schema)}}
    if binary:
        content[_BINARY] = {}
    return {"description": text, "content": content}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}
