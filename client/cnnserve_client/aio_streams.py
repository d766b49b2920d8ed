"""Runs a pipeline on asyncio gRPC streams: like `streams`, but with tasks instead of threads."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any

import grpc

from .errors import CnnserveError, UnavailableError
from .images import Image, take_time
from .pipeline import Abandon, Deliver, Pipeline, Send, Step, Wait
from .results import ImageResult
from .target import Failure

# The text of grpc.aio, instead of the status, if a stream ends while grpc.aio writes to it.
_LOST_REASON = "Internal error from Core"

Open = Callable[[int, AsyncIterator[bytes]], Any]
Explain = Callable[[Failure, int], Awaitable[CnnserveError]]
Source = AsyncIterable[Image | ImageResult] | Iterable[Image | ImageResult]


async def run(pipeline: Pipeline, source: Source, open_stream: Open, explain: Explain) -> AsyncGenerator[ImageResult]:
    """Yields the results in order. Closing the generator cancels the requests in flight."""
    async with aclosing(_Streams(open_stream, explain, source)) as streams:
        while True:
            await streams.tell(pipeline)
            match pipeline.next_step(time.monotonic()):
                case Step.READ:
                    streams.read()
                case Deliver(results):
                    for result in results:
                        yield result
                case Send(lane, data):
                    streams.send(lane, data)
                case Wait(seconds):
                    await streams.wait(seconds)
                case Abandon(lane):
                    streams.abandon(lane)
                case Step.DONE:
                    return


async def _awaitable(images: Iterable[Image | ImageResult]) -> AsyncIterator[Image | ImageResult]:
    for image in images:
        yield image
        # Lets other tasks run, among them the tasks of the streams.
        await asyncio.sleep(0)


@dataclass(frozen=True)
class _Read:
    """Event: the next image of the source."""

    image: Image | ImageResult

    async def tell(self, pipeline: Pipeline) -> None:
        if isinstance(self.image, ImageResult) or not take_time(self.image):
            pipeline.add(self.image, time.monotonic())
        else:
            await asyncio.to_thread(pipeline.add, self.image, time.monotonic())


@dataclass(frozen=True)
class _End:
    """Event: the source has ended, or it raised `error`."""

    error: BaseException | None = None


class _Reader:
    """Reads the source in a task of its own, so that results need not wait for it. Each `ask` reads one image."""

    def __init__(self, source: Source, events: "asyncio.Queue[_Event]") -> None:
        self._images = source if isinstance(source, AsyncIterable) else _awaitable(source)
        self._events = events
        self._asked = asyncio.Semaphore(0)
        self._task = asyncio.create_task(self._run())

    def ask(self) -> None:
        self._asked.release()

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})

    async def _run(self) -> None:
        await self._asked.acquire()
        try:
            async for image in self._images:
                self._events.put_nowait(_Read(image))
                await self._asked.acquire()
        except (Exception, asyncio.CancelledError) as error:  # raised again after the results before it
            self._events.put_nowait(_End(error))
        else:
            self._events.put_nowait(_End())


class _Stream:
    """One streaming call and the task that reads its responses."""

    def __init__(self, lane: int, open_stream: Open, events: "asyncio.Queue[_Event]") -> None:
        self.lane = lane
        self._requests: asyncio.Queue[bytes] = asyncio.Queue()
        self._events = events
        self._call = open_stream(lane, self._outgoing())
        self._reader = asyncio.create_task(self._listen())

    def send(self, data: bytes) -> None:
        self._requests.put_nowait(data)

    async def close(self) -> None:
        self._call.cancel()
        await self._reader

    async def _outgoing(self) -> AsyncIterator[bytes]:
        while True:
            yield await self._requests.get()

    async def _listen(self) -> None:
        try:
            async for data in self._call:
                self._events.put_nowait((self, data))
            self._events.put_nowait((self, None))
        except grpc.aio.AioRpcError as error:
            self._events.put_nowait((self, error))
        except asyncio.CancelledError:
            # grpc.aio raises this after `close` has cancelled the call. A cancellation of this task must go on.
            if not self._call.cancelled():
                raise


_Event = tuple[_Stream, "bytes | grpc.aio.AioRpcError | None"] | _Read | _End


class _Streams:
    """The open streams by connection, the source, and the events from them."""

    def __init__(self, open_stream: Open, explain: Explain, source: Source) -> None:
        self._open = open_stream
        self._explain = explain
        self._streams: dict[int, _Stream] = {}
        self._events: asyncio.Queue[_Event] = asyncio.Queue()
        self._first: _Event | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._reader = _Reader(source, self._events)

    def read(self) -> None:
        self._reader.ask()

    def send(self, lane: int, data: bytes) -> None:
        if lane not in self._streams:
            self._streams[lane] = _Stream(lane, self._open, self._events)
        self._streams[lane].send(data)

    async def wait(self, seconds: float) -> None:
        """Waits for an event, at most `seconds`."""
        # Not wait_for: up to Python 3.11 it loses a cancellation that arrives together with an event.
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                self._first = await self._events.get()

    async def tell(self, pipeline: Pipeline) -> None:
        """Reports all events to the pipeline."""
        while (event := self._next()) is not None:
            if isinstance(event, _Read):
                await event.tell(pipeline)
                continue
            if isinstance(event, _End):
                pipeline.exhausted(event.error)
                continue
            stream, outcome = event
            if self._streams.get(stream.lane) is not stream:
                continue  # the stream was cancelled
            if isinstance(outcome, bytes):
                pipeline.answered(stream.lane, outcome, time.monotonic())
            else:
                self.abandon(stream.lane)
                pipeline.broke(stream.lane, await self._reason(outcome, stream.lane), time.monotonic())

    def abandon(self, lane: int) -> None:
        task = asyncio.create_task(self._streams.pop(lane).close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def aclose(self) -> None:
        for lane in list(self._streams):
            self.abandon(lane)
        await asyncio.gather(*self._closing, self._reader.close())

    def _next(self) -> "_Event | None":
        if self._first is not None:
            event, self._first = self._first, None
            return event
        try:
            return self._events.get_nowait()
        except asyncio.QueueEmpty:
            return None

    async def _reason(self, error: grpc.aio.AioRpcError | None, lane: int) -> CnnserveError:
        if error is None:
            return UnavailableError("the server ended the stream")
        if error.details() == _LOST_REASON:
            return UnavailableError("the server ended the stream while a request was being sent")
        return await self._explain(error, lane)
