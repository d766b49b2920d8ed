"""The blocking client."""

import os
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import grpc

from . import calls, channels, limits, rpc, streams
from .errors import CnnserveError
from .images import Image, refuse_one
from .pipeline import Pipeline
from .results import Classification, ImageResult, ModelInfo
from .retry import Attempts, Rotation
from .security import Tls
from .target import DEFAULT_ADDRESS, Failure, Target

Result = TypeVar("Result")


class Client:
    """Connections to one cnnserve server or several. Close it, or use it in a `with` statement.

    Nothing is connected before the first call. Every call raises a `CnnserveError`, see `cnnserve_client.errors`.

    Threads may share a client. Processes may not: gRPC does not survive a fork, so a client refuses to work in a
    process that was forked after it was made; make one there.

    A call that changes nothing on the server is tried again where the server is UNAVAILABLE, after waits that double
    from 0.1 s, and where it is full, after the time it names. `load_model` and `unload_model` are tried again only
    where nothing was reached. No try begins after the call's deadline.

    Args:
        address: HOST:PORT of the server's gRPC port. Several, in a list or with commas between them, are asked in turn;
            one that does not answer rests a while.
        timeout_s: seconds that a call may take unless it says otherwise, all its tries together.
        max_message_mib: the largest message to send or accept; the server has a limit of its own.
        retries: how often a call is tried again; 0: never.
        connections: connections to each address. One carries thousands of small answers a second.
        tls: True, or a `Tls` with certificates: the connections are encrypted.
        token: sent as `authorization: Bearer TOKEN` with every call.
        token_over_plain_text: allows that without TLS to another machine, too.
    """

    def __init__(
        self,
        address: str | Sequence[str] = DEFAULT_ADDRESS,
        *,
        timeout_s: float = 30.0,
        max_message_mib: int = 64,
        retries: int = 4,
        connections: int = 1,
        tls: Tls | bool = False,
        token: str = "",
        token_over_plain_text: bool = False,
    ) -> None:
        self._target = Target(
            address, timeout_s, max_message_mib, retries, connections, tls, token, token_over_plain_text
        )
        self._channels = channels.blocking(self._target)
        self._stubs = [rpc.stubs(channel) for channel in self._channels]
        self._rotation = Rotation(len(self._channels))
        self._process = os.getpid()
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
        return self._run(
            calls.classify(images, self.max_message_bytes, model=model, version=version, top_k=top_k), timeout_s
        )

    def classify_many(
        self,
        images: Iterable[Image | ImageResult],
        *,
        model: str,
        version: str = "",
        top_k: int = 0,
        timeout_s: float | None = None,
    ) -> Generator[ImageResult]:
        """Classify any number of images, even without end, over a stream; one result per image, in order.

        The images are read as results are taken, about 128 ahead, from a list or a generator; requests are cut to fit
        the model's maximum batch and the message limits. What a server that restarts, or falls silent while another
        answers, had not answered is sent again.
        Close the generator to end early. While `images` makes its next image no result is handed out: read a slow
        source with `AsyncClient`.

        Args:
            images: as for `classify`. An `ImageResult` among them comes out again in its place.
            model: the model's name.
            version: one version; empty lets the server choose.
            top_k: as for `classify`.
            timeout_s: seconds that one request of the stream may take, and that servers may be away; None means the
                client's.

        Yields:
            Each image's classes or its own error, a file that cannot be read among them.

        Raises:
            InvalidInputError: at the call: `images` is one image, or another argument is wrong.
            CnnserveError: no such model, no ready version, or no server for `timeout_s`. Results come first, and an
                exception of `images` after those of the images before it.
        """
        refuse_one(images)
        timeout_s = self._target.timeout(timeout_s)
        request = calls.empty_request(model=model, version=version, top_k=top_k)
        self._check()

        def results() -> Generator[ImageResult]:
            limit = limits.of(self.get_model(model), version, self.max_message_bytes, top_k)
            pipeline = Pipeline(request, limit, self._target.channels, timeout_s)
            explain = partial(self._error, about="stream", timeout_s=timeout_s)
            yield from streams.run(pipeline, images, self._stream, explain)

        return results()

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
        name, `InvalidInputError` where the client has several addresses. A load goes on where the call's time is over.
        """
        self._target.one_server("load_model")
        return self._run(calls.load_model(name), timeout_s)

    def unload_model(self, name: str, *, timeout_s: float | None = None) -> ModelInfo:
        """Unload a model after its requests in flight are answered; the model as it is then.

        One that is not loaded is no error. Raises as `load_model`.
        """
        self._target.one_server("unload_model")
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
        """Close the connections; calls still running in other threads fail."""
        self._closed = True
        for channel in self._channels:
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({str(self._target)!r}{', closed' if self._closed else ''})"

    def _run(self, call: calls.Call[Result], timeout_s: float | None) -> Result:
        self._check()
        target = self._target
        timeout_s = target.timeout(timeout_s)
        method = call.method
        attempts = Attempts(
            self._rotation, safe=method.safe, light=method.light, retries=target.retries, timeout_s=timeout_s
        )
        while True:
            number = attempts.begin()
            try:
                ask = self._stubs[number][method.path]
                answer = ask(call.request, timeout=attempts.try_s, metadata=target.metadata)
            except grpc.RpcError as failure:
                error = self._error(cast("Failure", failure), number, about=call.about, timeout_s=timeout_s)
                wait_s = attempts.wait_s(error)
                if wait_s is None:
                    raise error from failure
                time.sleep(wait_s)
            else:
                self._rotation.worked(number)
                return call.result(answer)

    def _stream(self, number: int, requests: Iterator[bytes]) -> Any:
        self._check()
        return rpc.stream(self._channels[number])(requests, metadata=self._target.metadata)

    def _error(self, failure: Failure, number: int, *, about: str, timeout_s: float) -> CnnserveError:
        self._check()
        return self._target.error(failure, about, timeout_s, number)

    def _check(self) -> None:
        if self._closed:
            raise RuntimeError("this Client is closed")
        if self._process != os.getpid():
            raise RuntimeError("this Client was made before the process forked: make one in each process")
