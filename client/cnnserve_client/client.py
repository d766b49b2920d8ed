"""The blocking client."""

import os
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import grpc

from . import calls, channels, limits, rpc, streams
from .errors import CnnserveError
from .images import Image, refuse_one
from .pipeline import Pipeline
from .results import Classification, ImageResult, Inference, ModelInfo
from .retry import Attempts, Rotation
from .security import Tls
from .target import DEFAULT_ADDRESS, Failure, Target

Result = TypeVar("Result")


class Client:
    """Calls one or several cnnserve servers. Close the client, or use it in a `with` statement.

    The client connects at its first call. If a call fails, it raises a `CnnserveError`; `cnnserve_client.errors` lists
    the classes.

    Threads may share a client. Processes may not, because gRPC connections do not survive a fork: in a process that was
    forked after the client was created, every call raises `RuntimeError`. Create a client in each process.

    `load_model` and `unload_model` change the server, so the client tries them again only if no connection was
    established. It tries all other calls again in two cases. If a server is UNAVAILABLE, or has cancelled the call and
    closed the connection, it tries the other connections at once, then waits, first 50 to 100 ms and later up to 2 s.
    If the queue of a model is full, it waits for the time that the server names. No try starts after the deadline of
    the call.

    Args:
        address: HOST:PORT of the server's gRPC port. Several addresses, in a list or separated by commas, are used in
            turn. An address that failed is avoided for 0.5 to 30 s.
        timeout_s: default timeout of a call in seconds, for all its tries together.
        max_message_mib: maximum size in MiB of a message that the client sends or accepts. The server has its own
            limit.
        retries: how many times a call may wait and be tried again. None: until its deadline. 0: a call is sent only
            once.
        connections: number of connections to each address. One connection carries thousands of small responses/s.
        tls: True for TLS with gRPC's root certificates, or a `Tls` with certificate files.
        token: the client sends `authorization: Bearer TOKEN` with every call. Empty: no token.
        token_over_plain_text: allow sending the token to other machines without TLS.

    Raises:
        InvalidInputError: an argument is wrong, or a file of `tls` cannot be read.
    """

    def __init__(
        self,
        address: str | Sequence[str] = DEFAULT_ADDRESS,
        *,
        timeout_s: float = 30.0,
        max_message_mib: int = 64,
        retries: int | None = None,
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
        """Classifies one or many images in one request.

        Args:
            images: a path, the bytes of a file, a PIL image, a uint8 array (HxW, HxWx1, HxWx3 or HxWx4), or a sequence
                of these. A sequence may have at most as many images as the model's maximum batch.
            model: name of the model.
            version: number or label of a version. Empty: the newest READY version.
            top_k: number of classes for each image. 0 means 5, or all with a probability of at least 0.5 if the
                classes are independent of each other; if the model has fewer classes, the result has all.
            timeout_s: timeout of this call in seconds. None: the timeout of the client.

        Returns:
            One result for each image, in the order of the images. If the server cannot decode an image, its result has
            the error, and the call does not raise.

        Raises:
            InvalidInputError: an argument is wrong, an image cannot be read, or the server refuses the request, for
                example because it has too many images.
            CnnserveError: the request as a whole failed.
        """
        return self._run(
            calls.classify(images, self.max_message_bytes, model=model, version=version, top_k=top_k), timeout_s
        )

    def infer(
        self,
        tensors: Mapping[str, Any],
        *,
        model: str,
        version: str = "",
        outputs: Sequence[str] = (),
        timeout_s: float | None = None,
    ) -> Inference:
        """Runs a model on tensors: numpy arrays in, numpy arrays out.

        The server does not resize or normalise them. `get_model` returns the name, type and shape of the input.

        Args:
            tensors: an array, or anything that `numpy.asarray` takes, for the name of each input. The type must be that
                of the model; arrays of bytes or text are sent as BYTES.
            model: name of the model.
            version: number or label of a version. Empty: the newest READY version.
            outputs: names of the outputs to return. Empty: all.
            timeout_s: timeout of this call in seconds. None: the timeout of the client.

        Raises:
            InvalidInputError: an argument is wrong, the request is larger than `max_message_mib`, or the server refuses
                it, for example because the shape is not that of the model.
            CnnserveError: the request failed.
        """
        call = calls.infer(tensors, outputs, self._target.max_message_bytes, model=model, version=version)
        return self._run(call, timeout_s)

    def classify_many(
        self,
        images: Iterable[Image | ImageResult],
        *,
        model: str,
        version: str = "",
        top_k: int = 0,
        timeout_s: float | None = None,
    ) -> Generator[ImageResult]:
        """Classifies any number of images, even without end, over a stream. Yields one result for each image, in order.

        The client reads images only as results are taken, at most 256 images and about 32 MiB ahead for each
        connection. It puts them into requests that fit the model's maximum batch and the message limits. If a server
        restarts, or is silent while another server responds, the client sends the requests in flight again.

        To end early, close the generator. While `images` produces its next image, no result is handed out. If the
        source is slow, use `AsyncClient`.

        Args:
            images: the images, as for `classify`. An `ImageResult` among them is yielded unchanged in its place.
            model: name of the model.
            version: number or label of a version. Empty: the newest READY version.
            top_k: number of classes for each image, as for `classify`.
            timeout_s: seconds that one request of the stream may take, and that no server may be available. None: the
                timeout of the client.

        Yields:
            The classes or the error of each image. An image that cannot be read also has an error.

        Raises:
            InvalidInputError: `images` is a single image, or another argument is wrong. The call itself raises this.
            CnnserveError: the model does not exist, it has no READY version, or no server responded. Results that have
                arrived come first. An exception that `images` raises comes after the results of the images before it.
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
        """Returns all models of the server, without their labels."""
        return self._run(calls.list_models(), timeout_s)

    def get_model(self, name: str, *, timeout_s: float | None = None) -> ModelInfo:
        """Returns a model with versions, labels and limits. Raises `NotFoundError` if the name is unknown."""
        return self._run(calls.get_model(name), timeout_s)

    def load_model(self, name: str, *, timeout_s: float | None = None) -> ModelInfo:
        """Loads a model of the server's repository, or loads the versions again whose files changed.

        Returns the model as it is after the load. If the call times out, the server continues the load.

        Raises:
            FailedPreconditionError: the load failed; the text has the reason, and the versions that were READY before
                still are. Or the server's model control mode does not allow loads.
            PermissionDeniedError: the server does not allow clients to load models.
            NotFoundError: the repository has no model with this name.
            InvalidInputError: the client has several addresses.
        """
        self._target.one_server("load_model")
        return self._run(calls.load_model(name), timeout_s)

    def unload_model(self, name: str, *, timeout_s: float | None = None) -> ModelInfo:
        """Unloads a model after its requests in flight have ended. Returns the model as it is then.

        If the model is not loaded, nothing happens. Raises the same errors as `load_model`.
        """
        self._target.one_server("unload_model")
        return self._run(calls.unload_model(name), timeout_s)

    def is_healthy(self, service: str = "", *, timeout_s: float | None = None) -> bool:
        """Returns whether the server, or the model with the name `service`, is SERVING.

        Raises `NotFoundError` if the server has no such model, and `ConnectionFailedError` if it cannot be reached.
        """
        return self._run(calls.is_healthy(service), timeout_s)

    @property
    def max_message_bytes(self) -> int:
        """The maximum size in bytes of a message that this client sends or accepts."""
        return self._target.max_message_bytes

    def close(self) -> None:
        """Closes the connections. Calls that still run in other threads fail."""
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
                stub = self._stubs[number][method.path]
                allowed_s = attempts.try_s
                response = stub(call.request, timeout=allowed_s, metadata=target.metadata_of(allowed_s))
            except grpc.RpcError as failure:
                error = self._error(cast("Failure", failure), number, about=call.about, timeout_s=timeout_s)
                wait_s = attempts.wait_s(error)
                if wait_s is None:
                    raise error from failure
                time.sleep(wait_s)
            else:
                self._rotation.worked(number)
                return call.result(response)

    def _stream(self, number: int, requests: Iterator[bytes]) -> Any:
        self._check()
        return rpc.stream(self._channels[number])(requests, metadata=self._target.metadata)

    def _error(self, failure: Failure, number: int, *, about: str, timeout_s: float) -> CnnserveError:
        self._check()
        ended = partial(channels.has_ended, self._channels[number])
        return self._target.error(failure, about, timeout_s, number, has_ended=ended)

    def _check(self) -> None:
        if self._closed:
            raise RuntimeError("this Client is closed: create a new one")
        if self._process != os.getpid():
            raise RuntimeError("this Client was created before the process forked: create a Client in each process")
