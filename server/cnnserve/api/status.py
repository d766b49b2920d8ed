"""One table from error to gRPC status. Every RPC's errors leave through here, on any transport."""

import enum
import logging
from collections.abc import Mapping
from dataclasses import dataclass

from cnnserve import errors

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
    errors.DeadlineExceeded: Code.DEADLINE_EXCEEDED,
    errors.PermissionDenied: Code.PERMISSION_DENIED,
    errors.Unsupported: Code.UNIMPLEMENTED,
    errors.ModelLoadFailed: Code.FAILED_PRECONDITION,
    # Not UNAVAILABLE as in Triton: trying again cannot help.
    errors.ModelControlOff: Code.FAILED_PRECONDITION,
    errors.InferenceFailed: Code.INTERNAL,
}
# For clients of Triton that wait and try again on its code only.
TRITON_STATUS = STATUS | {errors.QueueFull: Code.UNAVAILABLE, errors.DeadlineExceeded: Code.UNAVAILABLE}


@dataclass(frozen=True)
class Status:
    """What a client is told."""

    code: Code
    message: str
    # Where the same request may be sent again: after this many milliseconds.
    retry_after_ms: int | None = None

    @property
    def trailers(self) -> dict[str, str]:
        """What a call that ends with this status carries beside it."""
        return {} if self.retry_after_ms is None else {"grpc-retry-pushback-ms": str(self.retry_after_ms)}


def of(error: Exception, request: str, table: Mapping[type[Exception], Code] = STATUS) -> Status:
    """The status of an error. What nobody foresaw is logged with the request's name and told as a fixed text."""
    code = table.get(type(error), Code.INTERNAL)
    if code is Code.INTERNAL:
        _log.error("%s failed", request, exc_info=error)
        return Status(code, INTERNAL_TEXT)
    retry_after_ms = error.retry_after_ms if isinstance(error, errors.QueueFull) else None
    return Status(code, _short(str(error)), retry_after_ms)


def _short(text: str) -> str:
    # Texts name the caller's own values, of any length; a client refuses headers of more than 8 to 16 KiB.
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}… ({len(text)} characters)"
