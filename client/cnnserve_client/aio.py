"""The asyncio client."""

import asyncio
from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

import grpc

from . import calls, rpc
from .images import Image, take_time
from .results import Classification, ModelInfo
from .target import DEFAULT_ADDRESS, Target

Result = TypeVar("Result")


class AsyncClient:
    """`Client` for asyncio: the same arguments, results and errors. Create and use it inside one running event loop."""

    def __init__(self, address: str = DEFAULT_ADDRESS, *, timeout_s: float = 30.0, max_message_mib: int = 64) -> None:
        asyncio.get_running_loop()  # grpc.aio would bind itself to another loop and fail at the first call
        self._target = Target(address, timeout_s, max_message_mib)
        self._channel = grpc.aio.insecure_channel(address, options=self._target.options)
        self._stubs = rpc.stubs(self._channel)
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
        """As `Client.classify`. Files are read on a thread, so the event loop goes on; the deadline starts after."""
        build = partial(calls.classify, images, model=model, version=version, top_k=top_k)
        # Bytes and arrays need microseconds, a thread ten times as many.
        call = await asyncio.to_thread(build) if take_time(images) else build()
        return await self._run(call, timeout_s)

    async def list_models(self, *, timeout_s: float | None = None) -> tuple[ModelInfo, ...]:
        """As `Client.list_models`."""
        return await self._run(calls.list_models(), timeout_s)

    async def get_model(self, name: str, *, timeout_s: float | None = None) -> ModelInfo:
        """As `Client.get_model`."""
        return await self._run(calls.get_model(name), timeout_s)

    async def load_model(self, name: str, *, timeout_s: float | None = None) -> ModelInfo:
        """As `Client.load_model`."""
        return await self._run(calls.load_model(name), timeout_s)

    async def unload_model(self, name: str, *, timeout_s: float | None = None) -> ModelInfo:
        """As `Client.unload_model`."""
        return await self._run(calls.unload_model(name), timeout_s)

    async def is_healthy(self, service: str = "", *, timeout_s: float | None = None) -> bool:
        """As `Client.is_healthy`."""
        return await self._run(calls.is_healthy(service), timeout_s)

    async def close(self) -> None:
        """Close the connection; calls still running fail."""
        self._closed = True
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"AsyncClient({self._target.address!r}{', closed' if self._closed else ''})"

    async def _run(self, call: calls.Call[Result], timeout_s: float | None) -> Result:
        if self._closed:
            raise RuntimeError("this AsyncClient is closed")
        timeout_s = self._target.timeout(timeout_s)
        try:
            answer = await self._stubs[call.method.path](call.request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise self._target.error(error, call.about, timeout_s) from error
        return call.result(answer)
