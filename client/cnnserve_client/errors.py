"""The exceptions that calls raise. Every exception has `code`, the name of its gRPC status.

Some are also built-in exceptions of Python: `except TimeoutError` catches a passed deadline, `except ConnectionError`
a server that cannot be reached, `except ValueError` invalid input. This module imports nothing.
"""


class CnnserveError(Exception):
    """The base class of all errors of this client, and the class of every status that has no class of its own."""

    code: str = "UNKNOWN"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class InvalidInputError(CnnserveError, ValueError):
    """An image or an argument cannot be sent, or the model does not accept it."""

    code = "INVALID_ARGUMENT"


class NotFoundError(CnnserveError):
    """The server has no model, version or health service with this name."""

    code = "NOT_FOUND"


class FailedPreconditionError(CnnserveError):
    """The server cannot do this in its present state, for example because a model does not load.

    The text says what to change.
    """

    code = "FAILED_PRECONDITION"


class UnavailableError(CnnserveError):
    """The model is not ready, the server is stopping, or the connection broke. Try again later."""

    code = "UNAVAILABLE"


class ConnectionFailedError(UnavailableError, ConnectionError):
    """No connection to the address was established, so the request was not sent.

    Possible causes: no server listens there, the port is no gRPC port, or the TLS settings of client and server differ.
    """


class ResourceExhaustedError(CnnserveError):
    """The request exceeds a limit, for example the message size. The same request will fail again."""

    code = "RESOURCE_EXHAUSTED"


class QueueFullError(ResourceExhaustedError):
    """The model's queue or the server's memory budget is full. Try again after `retry_after_s` seconds."""

    def __init__(self, message: str, *, code: str | None = None, retry_after_s: float = 0.0) -> None:
        super().__init__(message, code=code)
        self.retry_after_s = retry_after_s


class DeadlineExceededError(CnnserveError, TimeoutError):
    """No response arrived within the timeout of the call."""

    code = "DEADLINE_EXCEEDED"


class UnauthenticatedError(CnnserveError):
    """The credentials are missing or wrong."""

    code = "UNAUTHENTICATED"


class PermissionDeniedError(CnnserveError):
    """The server does not allow this caller to do this."""

    code = "PERMISSION_DENIED"


class UnsupportedError(CnnserveError):
    """The server or the model does not support the request."""

    code = "UNIMPLEMENTED"


class InternalError(CnnserveError):
    """The server failed, or its response is invalid."""

    code = "INTERNAL"


_BY_CODE: dict[str, type[CnnserveError]] = {
    error.code: error
    for error in (
        InvalidInputError,
        NotFoundError,
        FailedPreconditionError,
        UnavailableError,
        ResourceExhaustedError,
        DeadlineExceededError,
        UnauthenticatedError,
        PermissionDeniedError,
        UnsupportedError,
        InternalError,
    )
}


def no_response(address: str, timeout_s: float, details: str = "") -> DeadlineExceededError:
    """Returns the error for a server that did not respond within `timeout_s` seconds. `details` begins with a space."""
    return DeadlineExceededError(
        f"no response from {address} within {timeout_s:g} s{details}: check the server, or use a longer timeout"
    )


def from_status(code: str, message: str) -> CnnserveError:
    """Returns the error for a gRPC status name such as "NOT_FOUND". A name without a class gives `CnnserveError`."""
    return _BY_CODE.get(code, CnnserveError)(message, code=code)
