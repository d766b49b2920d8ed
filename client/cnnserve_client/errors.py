"""What a call raises. Every error carries `code`, the name of its gRPC status. This module imports nothing heavy.

Where Python has a builtin for the same thing the error is that too: `except TimeoutError` catches a passed deadline,
`except ConnectionError` a server that cannot be reached, `except ValueError` bad input.
"""


class CnnserveError(Exception):
    """Root of all errors of this client; also any status that has no class of its own."""

    code: str = "UNKNOWN"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class InvalidInputError(CnnserveError, ValueError):
    """An image or parameter that cannot be sent, or that the model cannot take."""

    code = "INVALID_ARGUMENT"


class NotFoundError(CnnserveError):
    """No model, version or health service of that name."""

    code = "NOT_FOUND"


class FailedPreconditionError(CnnserveError):
    """The server cannot do it as things stand: a model does not load, for instance. The text says what to change."""

    code = "FAILED_PRECONDITION"


class UnavailableError(CnnserveError):
    """The model is not ready, the server is draining or the connection broke: worth another try later."""

    code = "UNAVAILABLE"


class ConnectionFailedError(UnavailableError, ConnectionError):
    """Nothing that speaks gRPC, or TLS as the client does, was reached at the address; the request was not sent."""


class ResourceExhaustedError(CnnserveError):
    """A limit was met, the message size for instance: the same request will fail again."""

    code = "RESOURCE_EXHAUSTED"


class QueueFullError(ResourceExhaustedError):
    """The model's queue is full: try again after `retry_after_s` seconds."""

    def __init__(self, message: str, *, code: str | None = None, retry_after_s: float = 0.0) -> None:
        super().__init__(message, code=code)
        self.retry_after_s = retry_after_s


class DeadlineExceededError(CnnserveError, TimeoutError):
    """No answer within the call's timeout."""

    code = "DEADLINE_EXCEEDED"


class UnauthenticatedError(CnnserveError):
    """No credentials, or wrong ones."""

    code = "UNAUTHENTICATED"


class PermissionDeniedError(CnnserveError):
    """The caller is known and may not do this."""

    code = "PERMISSION_DENIED"


class UnsupportedError(CnnserveError):
    """The server or the model does not have what was asked for."""

    code = "UNIMPLEMENTED"


class InternalError(CnnserveError):
    """The server failed, or its answer cannot be understood."""

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


def from_status(code: str, message: str) -> CnnserveError:
    """The error for a gRPC status name such as "NOT_FOUND"; `CnnserveError` itself where none is made for it."""
    return _BY_CODE.get(code, CnnserveError)(message, code=code)
