"""The cnnserve client: images in, labels and probabilities out.

    from cnnserve_client import Client

    with Client("127.0.0.1:8001") as client:
        answer = client.classify(["cat.jpg", "dog.png"], model="resnet50")
        print(answer.results[0].top.label)

Parts:

    client, aio          Client and AsyncClient: sending, and nothing that both could decide alike
    calls, rpc           what each RPC asks and how its answer reads; the method table
    target, security     addresses, limits, gRPC status -> exception; TLS and tokens; `channels` makes them gRPC's
    connecting           why no connection came about, in words that help
    retry                whether a call is tried again, when and where
    pipeline             `classify_many` without I/O; `streams` and `aio_streams` carry it out
    images, batching     path, bytes, PIL image or array -> protobuf; what one request may hold, `limits` of a model
    arguments            arguments of the wrong type, told by name and value
    results, errors      what a call returns and raises
    commands             `cnnserve classify`, `models`, `labels`, `load`, `unload` and `health`
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
    from .results import Class, Classification, ImageResult, ModelInfo, TensorInfo, Timings, VersionInfo
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

# Hidden from type checkers, which would take any name for an attribute.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Import on first use: the command line must answer --help before grpc and numpy are read."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home = _HOMES.get(name) or ("errors" if name.endswith("Error") else "results")
        return getattr(import_module(f".{home}", __name__), name)
