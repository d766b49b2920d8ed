"""Responses of the HTTP port: JSON bodies, and the table of status codes and HTTP statuses."""

import json
import math
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response

from cnnserve.api import status
from cnnserve.api.status import Code

# `status.STATUS` gives every error its code.
HTTP_STATUS = {
    Code.INVALID_ARGUMENT: 400,
    Code.UNAUTHENTICATED: 401,
    Code.PERMISSION_DENIED: 403,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.FAILED_PRECONDITION: 409,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.CANCELLED: 499,
    Code.UNIMPLEMENTED: 501,
    Code.UNAVAILABLE: 503,
    Code.DEADLINE_EXCEEDED: 504,
}
_RETRY_MS = "grpc-retry-pushback-ms"


def answer(value: Any, status_code: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Returns a response with `value` as its JSON body. Status 503 asks the client to come back after a second."""
    response = Response(encode(value), status_code, headers, "application/json")
    if status_code == 503:
        response.headers.setdefault("Retry-After", "1")
    return response


def encode(value: Any) -> bytes:
    """Returns `value` as JSON in UTF-8. Raises `ValueError` for NaN and infinity, which JSON does not have."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # Half a surrogate pair, which a client's text may contain, cannot be encoded as UTF-8. Its escape is valid JSON.
    return text.encode("utf-8", "backslashreplace")


def error_answer(error: Exception, request: str, statuses: Mapping[type[Exception], Code] = status.STATUS) -> Response:
    """Returns the response `{"error": ...}` with the status of an error; `request` names the request in the log."""
    if isinstance(error, HTTPException):
        return answer({"error": error.detail}, error.status_code, error.headers)
    told = status.of(error, request, statuses)
    headers = {"WWW-Authenticate": "Bearer"} if told.code is Code.UNAUTHENTICATED else {}
    if _RETRY_MS in told.trailers:
        headers["Retry-After"] = str(math.ceil(int(told.trailers[_RETRY_MS]) / 1000))
    return answer({"error": told.message}, HTTP_STATUS.get(told.code, 500), headers)
