"""The asyncio client."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from . import aio_streams, calls, channels, limits, rpc
from .errors import CnnserveError
from .images import Image, refuse_one, take_time
from .pipeline import Pipeline
from .results import Classification, ImageResult, Inference, ModelInfo
from .retry import Attempts, Rotation
from .security import Tls
from .target import DEFAULT_ADDRESS, Failure, Target

Result = TypeVar("Result")


class AsyncClient:
    """`Client` for asyncio, with the same arguments, results and errors.

    Create and use it inside one running event loop. Without one, the constructor raises `RuntimeError`.
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
        asyncio.get_running_loop()  # without a running loop, grpc.aio would take another one and fail at the first call
        self._target = Target(
            address, timeout_s, max_message_mib, retries, connections, tls, token, token_over_plain_text
        )
        self._channels = channels.asyncio(self._target)
        self._stubs = [rpc.stubs(channel) for channel in self._channels]
        self._rotation = Rotation(len(self._channels))
        self._closed = False

    async def classify(
        self,
        images: Image | Sequence[Image],
        *,
        model: str,
        version: str = "",
        top_k: int = 0,
        timeout_s: float | None = None,
    ) -> Classification:
        """Classifies one or many images in one request, like `Client.classify`.

        A thread reads files and decodes PIL images, so that they do not block the event loop. The timeout starts then.
        """
        build = partial(
            calls.classify, images, self._target.max_message_bytes, model=model, version=version, top_k=top_k
        )
        # Bytes and arrays take microseconds; handing them to a thread would take ten times as long.
        call = await asyncio.to_thread(build) if take_time(images) else build()
        return await self._run(call, timeout_s)

    async def infer(
        self,
        tensors: Mapping[str, Any],
        *,
        model: str,
        version: str = "",
        outputs: Sequence[str] = (),
        timeout_s: float | None = None,
    ) -> Inference:
        """Runs a model on tensors, like `Client.infer`."""
        call = calls.infer(tensors, outputs, self._target.max_message_bytes, model=model, version=version)
        return await self._run(call, timeout_s)

    def classify_many(
        self,
        images: aio_streams.Source,
        *,
        model: str,
        version: str = "",
        top_k: int = 0,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[ImageResult]:
        """Classifies any number of images over a stream, like `Client.classify_many`.

        `images` may also be an asynchronous iterable. Then a task reads it, so that results are handed out while the
        next image is awaited; the task is cancelled at the end. If `images` is a plain iterable, it blocks the event
        loop while it produces its next image.

        To end early, use `aclose` or `contextlib.aclosing`. After a mere `break`, the stream would continue until
        Python collects the generator.
        """
        refuse_one(images, asynchronous=True)
        timeout_s = self._target.timeout(timeout_s)
        request = calls.empty_request(model=model, version=version, top_k=top_k)
        self._check()

        async def results() -> AsyncGenerator[ImageResult]:
            limit = limits.of(await self.get_model(model), version, self._target.max_message_bytes, top_k)
            pipeline = Pipeline(request, limit, self._target.channels, timeout_s)
            explain = partial(self._error, about="stream", timeout_s=timeout_s)
            async with aclosing(aio_streams.run(pipeline, images, self._stream, explain)) as running:
                async for result in running:
                    yield result

        return results()

    async def list_models(self, *, timeout_s: float | None = None) -> tuple[ModelInfo, ...]:
        """Returns all models of the server, like `Client.list_models`."""
        return await self._run(calls.list_models(), timeout_s)

    async def get_model(self, name: str, *, timeout_s: float | None = None) -> ModelInfo:
        """Returns one model with labels and limits, like `Client.get_model`."""
        return await self._run(calls.get_model(name), timeout_s)

    async def load_model(self, name: str, *, timeout_s: float | None = None) -> ModelInfo:
        """Loads a model and returns it, like `Client.load_model`."""
        self._target.one_server("load_model")
        return await self._run(calls.load_model(name), timeout_s)

    async def unload_model(self, name: str, *, timeout_s: float | None = None) -> ModelInfo:
        """Unloads a model and returns it, like `Client.unload_model`."""
        self._target.one_server("unload_model")
        return await self._run(calls.unload_model(name), timeout_s)

    async def is_healthy(self, service: str = "", *, timeout_s: float | None = None) -> bool:
        """Returns whether the server or a model is SERVING, like `Client.is_healthy`."""
        return await self._run(calls.is_healthy(service), timeout_s)

    async def close(self) -> None:
        """Closes the connections. Calls that still run fail."""
        self._closed = True
        for channel in self._channels:
            await channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"AsyncClient({str(self._target)!r}{', closed' if self._closed else ''})"

    async def _run(self, call: calls.Call[Result], timeout_s: float | None) -> Result:
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
                response = await stub(call.request, timeout=allowed_s, metadata=target.metadata_of(allowed_s))
            except grpc.aio.AioRpcError as failure:
                error = await self._error(failure, number, about=call.about, timeout_s=timeout_s)
                wait_s = attempts.wait_s(error)
                if wait_s is None:
                    raise error from failure
                await asyncio.sleep(wait_s)
            else:
                self._rotation.worked(number)
                return call.result(response)

    def _stream(self, number: int, requests: AsyncIterator[bytes]) -> Any:
        self._check()
        return rpc.stream(self._channels[number])(requests, metadata=self._target.metadata)

    async def _error(self, failure: Failure, number: int, *, about: str, timeout_s: float) -> CnnserveError:
        self._check()
        # Nothing else depends on it.
        is_cancelled = failure.code() is grpc.StatusCode.CANCELLED
        ended = is_cancelled and await channels.has_ended_for_asyncio(self._channels[number])
        return self._target.error(failure, about, timeout_s, number, has_ended=lambda: ended)

    def _check(self) -> None:
        if self._closed:
            raise RuntimeError("this AsyncClient is closed: create a new one")
