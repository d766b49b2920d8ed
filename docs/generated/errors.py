"""Every error of the server with its gRPC and HTTP status."""

import inspect

from cnnserve.api.status import STATUS, TRITON_STATUS
from cnnserve.transports.http.answers import HTTP_STATUS

from .tables import code, table

_HEAD = """# Errors of the server

Each error of the server has one gRPC status and one HTTP status. [Operate](../operate.md#errors) says what clients
should do about them. Any other error is `INTERNAL` (HTTP 500) with a fixed text; the cause is in the log of the server.

"""
_HTTP_ONLY = """
HTTP has these besides:

| HTTP | Reason |
| --- | --- |
| 400 | the bytes are no HTTP request, or the chunks of the body are too small |
| 403 | the request is for another host, or from a page of another site (`--allowed-host`) |
| 404 | there is no such path |
| 405 | the path does not have this method |
| 408 | the client stopped sending the body for 30 s, or its headers took longer than 10 s |
| 413 | the body is larger than `max_message_mib` |
| 415 | the server does not read this content type or content coding |
| 431 | the request has more than 100 headers, or more than 64 KiB of them |
| 503 | there are too many connections; all but `/v2/health/live` is refused |
"""


def page() -> str:
    """The page."""
    rows = [
        (
            code(error.__name__),
            code(status.name) + (f" ({code(triton.name)} with `--triton-status-codes`)" if triton != status else ""),
            str(HTTP_STATUS.get(status, 500)),
            inspect.getdoc(error) or "",
        )
        for error, status in STATUS.items()
        for triton in [TRITON_STATUS[error]]
    ]
    return _HEAD + table(("Error", "gRPC status", "HTTP", "Meaning"), rows) + _HTTP_ONLY
