"""The cnnserve client sends images to a server and returns labels and probabilities.

    from cnnserve_client import Client

    with Client("127.0.0.1:8001") as client:
        response = client.classify(["cat.jpg", "dog.png"], model="resnet50")
        print(response.results[0].top.label)

Modules:

    client, aio              `Client` and `AsyncClient`: send calls; they share everything that needs no I/O
    calls, rpc               build the request of each RPC and read its response; the table of the RPCs
    open_inference           the messages of `infer`, in a descriptor pool of their own
    tensors                  arrays as the bytes of tensors, and back
    target, security         addresses, limits, exceptions for gRPC statuses; TLS and tokens
    channels                 creates the gRPC channels
    connecting               explains why a connection failed
    retry                    decides whether, when and on which connection a call is tried again
    pipeline, in_flight      `classify_many` as a state machine without I/O
    streams, aio_streams     run the pipeline on blocking and on asyncio streams
    images                   converts paths, bytes, PIL images and arrays to protobuf
    batching, limits         how much one request may hold, in general and for a model
    arguments                checks the type and range of arguments
    results, errors          what a call returns and raises
    commands                 `cnnserve classify`, `models`, `labels`, `load`, `unload` and `health`
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .aio import AsyncClient
    from .client import Client
    from .errors import (
        CnnserveError,
        ConnectionFailedError,
        DeadlineExceededError,
        FailedPreconditionError,
        InternalError,
        InvalidInputError,
        NotFoundError,
        PermissionDeniedError,
        QueueFullError,
        ResourceExhaustedError,
        UnauthenticatedError,
        UnavailableError,
        UnsupportedError,
    )
    from .results import Class, Classification, ImageResult, Inference, ModelInfo, TensorInfo, Timings, VersionInfo
    from .security import Tls

__all__ = [
    "AsyncClient",
    "Class",
    "Classification",
    "Client",
    "CnnserveError",
    "ConnectionFailedError",
    "DeadlineExceededError",
    "FailedPreconditionError",
    "ImageResult",
    "Inference",
    "InternalError",
    "InvalidInputError",
    "ModelInfo",
    "NotFoundError",
    "PermissionDeniedError",
    "QueueFullError",
    "ResourceExhaustedError",
    "TensorInfo",
    "Timings",
    "Tls",
    "UnauthenticatedError",
    "UnavailableError",
    "UnsupportedError",
    "VersionInfo",
]

_HOMES = {"AsyncClient": "aio", "Client": "client", "Tls": "security"}

# Type checkers must not see this function: with it they would accept any name as an attribute of the package.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Returns a public name and imports its module, so that `--help` does not wait for grpc and numpy."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home = _HOMES.get(name) or ("errors" if name.endswith("Error") else "results")
        return getattr(import_module(f".{home}", __name__), name)
