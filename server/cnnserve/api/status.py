"""The table of errors and their gRPC status codes. Every transport turns the errors of RPCs into statuses here."""

import enum
import logging
from collections.abc import Mapping
from dataclasses import dataclass

from cnnserve import errors
from cnnserve.logs import REQUEST
from cnnserve.process import refusals

_log = logging.getLogger(__name__)

_MAX_TEXT = 1000
INTERNAL_TEXT = "internal error; the server's log has the cause"


class Code(enum.IntEnum):
    """gRPC's status codes by number."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


STATUS: dict[type[Exception], Code] = {
    errors.InvalidInput: Code.INVALID_ARGUMENT,
    errors.ModelNotFound: Code.NOT_FOUND,
    errors.VersionNotFound: Code.NOT_FOUND,
    errors.RegionNotFound: Code.NOT_FOUND,
    errors.AlreadyExists: Code.ALREADY_EXISTS,
    errors.LimitReached: Code.RESOURCE_EXHAUSTED,
    errors.ModelNotReady: Code.UNAVAILABLE,
    errors.ShuttingDown: Code.UNAVAILABLE,
    errors.QueueFull: Code.RESOURCE_EXHAUSTED,
    errors.ClientLimitReached: Code.RESOURCE_EXHAUSTED,
    errors.DeadlineExceeded: Code.DEADLINE_EXCEEDED,
    errors.Unauthenticated: Code.UNAUTHENTICATED,
    errors.PermissionDenied: Code.PERMISSION_DENIED,
    errors.Unsupported: Code.UNIMPLEMENTED,
    errors.ModelLoadFailed: Code.FAILED_PRECONDITION,
    # Triton's code is UNAVAILABLE, which asks clients to retry, but a retry cannot help.
    errors.ModelControlOff: Code.FAILED_PRECONDITION,
    errors.InferenceFailed: Code.INTERNAL,
    errors.BadAnswer: Code.INTERNAL,
    errors.RunTimedOut: Code.INTERNAL,
}
# Internal errors whose text the client receives.
_TOLD = (errors.BadAnswer, errors.RunTimedOut)
# For clients of Triton that retry only after Triton's own code.
TRITON_STATUS = STATUS | {errors.QueueFull: Code.UNAVAILABLE, errors.DeadlineExceeded: Code.UNAVAILABLE}


@dataclass(frozen=True)
class Status:
    """The status that a client receives."""

    code: Code
    message: str
    # If a retry can help: the time after which the client may send the same request again.
    retry_after_ms: int | None = None

    @property
    def trailers(self) -> dict[str, str]:
        """The trailing metadata of a call that ends with this status."""
        return {} if self.retry_after_ms is None else {"grpc-retry-pushback-ms": str(self.retry_after_ms)}


def mark(error: Exception, request_id: str, trace_id: str = "") -> Exception:
    """Gives an error the ids of its request, unless it has some, and returns it. The line about it has them."""
    if not hasattr(error, REQUEST):
        ids = {"request_id": request_id} | ({"trace_id": trace_id} if trace_id else {})
        setattr(error, REQUEST, ids)
    return error


def of(error: Exception, request: str, table: Mapping[type[Exception], Code] = STATUS) -> Status:
    """Returns the status of an error. `request` names the request in the log.

    The text of most internal errors, and of errors that are not in `table`, is only logged; the client gets a fixed
    text.
    """
    code = table.get(type(error), Code.INTERNAL)
    refusals.count(error)
    if code is Code.INTERNAL and not isinstance(error, _TOLD):
        _log.error("%s failed", request, exc_info=error, extra={REQUEST: getattr(error, REQUEST, {"request_id": "-"})})
        return Status(code, INTERNAL_TEXT)
    retry_after_ms = error.retry_after_ms if isinstance(error, errors.QueueFull) else None
    return Status(code, _short(str(error)), retry_after_ms)


def _short(text: str) -> str:
    # Texts quote the client's values, which may have any length, but clients refuse headers above 8 KiB to 16 KiB.
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}… ({len(text)} characters)"
