"""The blocking client."""

from collections.abc import Sequence
from types import TracebackType
from typing import Self, TypeVar, cast

import grpc

from . import calls, rpc
from .images import Image
from .results import Classification, ModelInfo
from .target import DEFAULT_ADDRESS, Failure, Target

Result = TypeVar("Result")


class Client:
    """A connection to a cnnserve server. Threads may share it; close it, or use it in a `with` statement.

    Nothing is connected before the first call. Every call raises a `CnnserveError`, see `cnnserve_client.errors`.

    Args:
        address: HOST:PORT of the server's gRPC port.
        timeout_s: seconds that a call may take unless it says otherwise.
        max_message_mib: the largest message to send or accept; the server has a limit of its own.
    """

    def __init__(self, address: str = DEFAULT_ADDRESS, *, timeout_s: float = 30.0, max_message_mib: int = 64) -> None:
        self._target = Target(address, timeout_s, max_message_mib)
        self._channel = grpc.insecure_channel(address, options=self._target.options)
        self._stubs = rpc.stubs(self._channel)
        self._closed = False

    def classify(
        self,
        images: Image | Sequence[Image],
        *,
        model: str,
        version: str = "",
        top_k: int = 0,
        timeout_s: float | None = None,
    ) -> Classification:
        """Classify one or many images in one request.

        Args:
            images: a path, a file's bytes, a PIL image, a uint8 array (HxW, HxWx1, HxWx3, HxWx4), or a sequence of
                these, at most as many as the model's maximum batch.
            model: the model's name.
            version: one version; empty lets the server choose.
            top_k: classes wanted per image: 0 means 5, more than the model has means all.
            timeout_s: this call's deadline in seconds; None means the client's.

        Returns:
            One result per image, in order. An image that the server could not decode has its error in its result and
            raises nothing; an image that cannot be sent at all raises `InvalidInputError` before anything is sent.
        """
        return self._run(calls.classify(images, model=model, version=version, top_k=top_k), timeout_s)

    def list_models(self, *, timeout_s: float | None = None) -> tuple[ModelInfo, ...]:
        """Every model of the server's repository, without labels."""
        return self._run(calls.list_models(), timeout_s)

    def get_model(self, name: str, *, timeout_s: float | None = None) -> ModelInfo:
        """One model in full: versions, labels and limits. Raises `NotFoundError` for an unknown name."""
        return self._run(calls.get_model(name), timeout_s)

    def load_model(self, name: str, *, timeout_s: float | None = None) -> ModelInfo:
        """Load a model of the server's repository, or load again what changed there; the model as it is then.

        Raises `FailedPreconditionError` with the reason where that fails (what served before still does) or where the
        server's mode has no such calls, `PermissionDeniedError` where clients may not, `NotFoundError` for an unknown
        name. A load goes on where the call's time is over.
        """
        return self._run(calls.load_model(name), timeout_s)

    def unload_model(self, name: str, *, timeout_s: float | None = None) -> ModelInfo:
        """Unload a model after its requests in flight are answered; the model as it is then.

        One that is not loaded is no error. Raises as `load_model`.
        """
        return self._run(calls.unload_model(name), timeout_s)

    def is_healthy(self, service: str = "", *, timeout_s: float | None = None) -> bool:
        """Whether the server, or the model called `service`, answers requests.

        False is the server's own word. A server that cannot be reached and an unknown name raise.
        """
        return self._run(calls.is_healthy(service), timeout_s)

    @property
    def max_message_bytes(self) -> int:
        """The largest message this client sends or accepts."""
        return self._target.max_message_bytes

    def close(self) -> None:
        """Close the connection; calls still running in other threads fail."""
        self._closed = True
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self._target.address!r}{', closed' if self._closed else ''})"

    def _run(self, call: calls.Call[Result], timeout_s: float | None) -> Result:
        if self._closed:
            raise RuntimeError("this Client is closed")
        timeout_s = self._target.timeout(timeout_s)
        try:
            answer = self._stubs[call.method.path](call.request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise self._target.error(cast("Failure", error), call.about, timeout_s) from error
        return call.result(answer)
