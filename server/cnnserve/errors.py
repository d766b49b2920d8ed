"""Every error that a client can receive.

The text of a `ServingError` reaches the client, so it names the client's own value and what to do, never a path or an
internal name. `api/status.py` gives each class its gRPC status. This module imports nothing.
"""


class ServingError(Exception):
    """Base of all errors whose text is meant for the client."""


class InvalidInput(ServingError):
    """The request has a shape, data type, image or parameter that the model or the server cannot take."""


class ModelNotFound(ServingError):
    """The model repository has no model of that name."""


class VersionNotFound(ServingError):
    """The model exists, but it has no such version."""


class ModelNotReady(ServingError):
    """The model or version is not READY, or the server does not know it yet. The text gives the reason."""


class RegionNotFound(ServingError):
    """No shared memory region of that name is registered."""


class AlreadyExists(ServingError):
    """A shared memory region of that name is already registered."""


class LimitReached(ServingError):
    """The server holds as many shared memory regions as it may. A retry helps only after clients unregister some."""


class ShuttingDown(ServingError):
    """The server or the model drains and accepts no new requests."""


class QueueFull(ServingError):
    """The request does not fit into the model's queue or into the memory for requests.

    `retry_after_ms`: estimated time in ms after which a retry may succeed.
    """

    def __init__(self, message: str, retry_after_ms: int) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class ClientLimitReached(QueueFull):
    """The client has sent more requests per second, or has more images in flight, than one client may."""


class DeadlineExceeded(ServingError):
    """The deadline or the queue timeout of the request passed before its run began."""


class Unauthenticated(ServingError):
    """The client has not shown who it is: it has no valid token and no known certificate."""


class PermissionDenied(ServingError):
    """The client is not allowed to do this."""


class Unsupported(ServingError):
    """The request uses a part of the protocol that this server or this model does not have."""


class ModelLoadFailed(ServingError):
    """A model could not be loaded. The text gives the reason and what to do."""


class ModelControlOff(ServingError):
    """Clients cannot load or unload models in this server's model control mode."""


class InferenceFailed(ServingError):
    """A run failed. The server logs the cause; the client receives a fixed text."""


class BadAnswer(ServingError):
    """The model returned a row with values that are not finite or no probabilities. The text names the row."""


class RunTimedOut(ServingError):
    """A run took longer than its limit and was ended, and with it the version."""


def reason(error: OSError | UnicodeDecodeError) -> str:
    """Returns why a file cannot be read, without its path, because clients see these texts."""
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else str(error)
