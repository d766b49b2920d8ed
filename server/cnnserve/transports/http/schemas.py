"""JSON schemas of the bodies that the HTTP port reads and writes."""

from typing import Any

_TEXT = {"type": "string"}
_FLAG = {"type": "boolean"}
_COUNT = {"type": "integer", "minimum": 0}
_SIZE = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}


def _object(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": {**required, **(optional or {})}}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


_PARAMETERS = {
    "type": "object",
    "additionalProperties": {
        "anyOf": [
            _FLAG,
            _TEXT,
            {"type": "integer", "minimum": -(2**63), "maximum": 2**64 - 1},
            # The schema above covers the integers.
            {"type": "number", "not": {"type": "integer"}},
        ]
    },
}
_LOAD_PARAMETERS = {
    "type": "object",
    "additionalProperties": {"anyOf": [_FLAG, _TEXT, {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}]},
}
_BASE64 = {**_object({"b64": {"type": "string", "contentEncoding": "base64"}}), "additionalProperties": False}
_TENSOR = {"name": _TEXT, "datatype": _TEXT, "shape": _list({"type": "integer"})}
_INPUT_TENSOR = {"name": _TEXT, "datatype": _TEXT, "shape": {**_list(_SIZE), "maxItems": 8}}
_DATA = {"type": "array", "description": "Values row by row, nested as in the shape, or flat"}
_CLASS = _object({"index": _COUNT, "label": _TEXT, "probability": {"type": "number"}})
_MICROSECONDS = {"queue_us": _COUNT, "preprocess_us": _COUNT, "compute_us": _COUNT, "total_us": _COUNT}

SCHEMAS: dict[str, Any] = {
    "Object": {"type": "object"},
    "Empty": {"type": "object", "maxProperties": 0},
    "Error": _object({"error": _TEXT}),
    "Live": _object({"live": _FLAG}),
    "Ready": _object({"ready": _FLAG}),
    "ModelReady": _object({"name": _TEXT, "ready": _FLAG}),
    "Server": _object({"name": _TEXT, "version": _TEXT, "extensions": _list(_TEXT)}),
    "Model": _object(
        {
            "name": _TEXT,
            "versions": _list(_TEXT),
            "platform": _TEXT,
            "inputs": _list(_object(_TENSOR)),
            "outputs": _list(_object(_TENSOR)),
        }
    ),
    "Statistics": _object({"model_stats": _list(_object({"name": _TEXT, "version": _TEXT}))}),
    "InferenceRequest": _object(
        {"inputs": _list(_object(_INPUT_TENSOR, {"parameters": _PARAMETERS, "data": _DATA}))},
        {
            "id": _TEXT,
            "parameters": _PARAMETERS,
            "outputs": _list(_object({"name": _TEXT}, {"parameters": _PARAMETERS})),
        },
    ),
    "Inference": _object(
        {
            "model_name": _TEXT,
            "model_version": _TEXT,
            "outputs": _list(_object(_TENSOR, {"parameters": _PARAMETERS, "data": _DATA})),
        },
        {"id": _TEXT, "parameters": _PARAMETERS},
    ),
    "ImagesRequest": {"anyOf": [_BASE64, _object({"images": _list(_BASE64)})]},
    "InstancesRequest": _object({"instances": {"type": "array", "minItems": 1}}, {"signature_name": _TEXT}),
    "Predictions": _object({"predictions": {"type": "array"}}),
    "Classification": _object(
        {
            "model": _TEXT,
            "version": _TEXT,
            "results": _list({"anyOf": [_object({"classes": _list(_CLASS)}), {"$ref": "#/components/schemas/Error"}]}),
            "timings": _object(_MICROSECONDS),
        }
    ),
    "SettingsRequest": _object({}),
    "IndexRequest": _object({}, {"ready": _FLAG}),
    "Index": _list(_object({"name": _TEXT, "version": _TEXT, "state": _TEXT, "reason": _TEXT})),
    "ParametersRequest": _object({}, {"parameters": _LOAD_PARAMETERS}),
    "RegionRequest": _object({"key": _TEXT, "byte_size": _COUNT}, {"offset": _COUNT}),
    "Regions": _list(_object({"name": _TEXT, "key": _TEXT, "offset": _COUNT, "byte_size": _COUNT})),
}
