"""The OpenAPI 3.1 document of the routes that are served."""

import re
from collections.abc import Iterable
from typing import Any

import cnnserve
from cnnserve.transports.http.body import MAX_JSON_BYTES
from cnnserve.transports.http.infer_json import HEADER_LENGTH
from cnnserve.transports.http.routes import Operation
from cnnserve.transports.http.schemas import SCHEMAS
from cnnserve.transports.http.scraping import OPEN_METRICS, PLAIN

_JSON = "application/json"
_BINARY = "application/octet-stream"
_ERRORS = {
    400: "A value that cannot be taken; the text names it",
    403: "Not permitted by the server's settings",
    404: "No such model or version",
    408: "The body stopped coming",
    409: "Not possible now: a load failed, or models are not changed by call",
    413: "The body is too large",
    415: "A content-type or content-encoding that is not read here",
    429: "The model's queue or the server's memory is full; Retry-After says when to come back",
    500: "Unforeseen; the server's log has the cause",
    501: "Not part of this server",
    503: "Not ready, or stopping",
    504: "The time given for the request is over",
}


def document(operations: Iterable[Operation], max_body_bytes: int) -> dict[str, Any]:
    """What `/openapi.json` answers."""
    paths: dict[str, Any] = {"/openapi.json": {"get": _itself()}}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "cnnserve",
            "version": cnnserve.__version__,
            "description": "Image classification. /v2 is the Open Inference Protocol with Triton's extensions, /v1 "
            f"takes images. Bodies hold at most {max_body_bytes} bytes, JSON at most {MAX_JSON_BYTES}; they may be "
            "packed with gzip or deflate (Content-Encoding).",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {"schemas": SCHEMAS},
    }


def _itself() -> dict[str, Any]:
    return {
        "operationId": "OpenApi",
        "summary": "This document",
        "responses": {"200": _answer("This document", "Object")},
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
        # A no is an answer, too.
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
    timeout = "How long the client waits, in gRPC's words: digits and one of H M S m u n, 250m is 250 ms"
    if not operation.rpc:
        return []
    found = [_parameter("Grpc-Timeout", "header", {"type": "string", "pattern": "^[0-9]{1,8}[HMSmun]$"}, timeout)]
    if operation.body == "Inference":
        text = "Length of the JSON at the start of the body; 0: the body is the bytes of the model's only input"
        found.append(_parameter(HEADER_LENGTH, "header", {"type": "integer", "minimum": 0}, text))
    if operation.body == "Images":
        limits = {"type": "integer", "minimum": 0, "maximum": 999_999_999}
        found.append(_parameter("top_k", "query", limits, "Classes per image; 0: 5, more than there are: all"))
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
        return {"required": True, "content": {**dict.fromkeys(kinds, image), "multipart/form-data": form}}
    content: dict[str, Any] = {_JSON: {"schema": _ref(f"{kind}Request")}}
    if kind == "Inference":
        content[_BINARY] = {}
    return {"required": kind == "Inference", "content": content}


def _answer(text: str, schema: str, *, binary: bool = False) -> dict[str, Any]:
    content: dict[str, Any] = {_JSON: {"schema": _ref(schema)}}
    if binary:
        content[_BINARY] = {}
    return {"description": text, "content": content}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}
