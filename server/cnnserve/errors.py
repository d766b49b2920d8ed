"""Every error a caller can be told about.

The text of a `ServingError` reaches the client, so it names the caller's own value and the fix, never a path or an
internal name. `api/status.py` gives each class its gRPC status. This module imports nothing.
"""


class ServingError(Exception):
    """Root of the errors whose text is meant for the client."""


class InvalidInput(ServingError):
    """A shape, data type, image or parameter that the model cannot take."""


class ModelNotFound(ServingError):
    """No model of that name is in the repository."""


class VersionNotFound(ServingError):
    """The model exists, that version of it does not."""


class ModelNotReady(ServingError):
    """The model or version exists and is not READY; the text says why."""


class RegionNotFound(ServingError):
    """No shared memory region of that name is registered."""


class AlreadyExists(ServingError):
    """Something of that name is there already."""


class LimitReached(ServingError):
    """The server keeps no more of these; trying again helps only where the caller gives some back."""


class ShuttingDown(ServingError):
    """The server is draining and takes no new work."""


class QueueFull(ServingError):
    """More images wait for the model than its queue may hold."""

    def __init__(self, message: str, retry_after_ms: int) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class DeadlineExceeded(ServingError):
    """The request's deadline passed before its work began."""


class PermissionDenied(ServingError):
    """The caller is known and may not do this."""


class Unsupported(ServingError):
    """A part of the protocol this server or this model does not have."""


class ModelLoadFailed(ServingError):
    """A model could not be loaded; the text is the reason and the fix."""


class ModelControlOff(ServingError):
    """Models are not loaded or unloaded by call in this server's model control mode."""


class InferenceFailed(ServingError):
    """The runtime failed. The cause is logged; the client gets a fixed text."""


def reason(error: OSError | UnicodeDecodeError) -> str:
    """Why a file cannot be read, without its path: clients see these texts."""
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else str(error)
