"""Runs a pipeline on blocking gRPC streams."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, cast

import grpc

from .errors import CnnserveError, UnavailableError
from .images import Image
from .pipeline import Abandon, Deliver, Pipeline, Send, Step, Wait
from .results import ImageResult
from .target import Failure

Open = Callable[[int, Iterator[bytes]], Any]
"""(connection, requests) -> the gRPC call, which yields responses."""
Explain = Callable[[Failure, int], CnnserveError]
"""(error of gRPC, connection) -> the exception to raise."""


def run(
    pipeline: Pipeline, source: Iterable[Image | ImageResult], open_stream: Open, explain: Explain
) -> Generator[ImageResult]:
    """Yields the results in order. Closing the generator cancels the requests in flight."""
    images = iter(source)
    streams = _Streams(open_stream, explain)
    with contextlib.closing(streams):
        while True:
            streams.tell(pipeline)
            match pipeline.next_step(time.monotonic()):
                case Step.READ:
                    _read(images, pipeline)
                case Deliver(results):
                    yield from results
                case Send(lane, data):
                    streams.send(lane, data)
                case Wait(seconds):
                    streams.wait(seconds)
                case Abandon(lane):
                    streams.abandon(lane)
                case Step.DONE:
                    return


def _read(images: Iterator[Image | ImageResult], pipeline: Pipeline) -> None:
    try:
        image = next(images)
    except StopIteration:
        pipeline.exhausted()
    except Exception as error:  # raised again after the results of the images before it
        pipeline.exhausted(error)
    else:
        pipeline.add(image, time.monotonic())


class _Stream:
    """One streaming call. A thread reads its responses, so that checking for events never blocks, and ends with it."""

    def __init__(self, lane: int, open_stream: Open, events: "queue.SimpleQueue[_Event]") -> None:
        self.lane = lane
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._events = events
        self._call = open_stream(lane, iter(self._requests.get, None))
        self._reader = threading.Thread(target=self._listen, name="cnnserve-responses", daemon=True)
        self._reader.start()

    def send(self, data: bytes) -> None:
        self._requests.put(data)

    def close(self) -> None:
        self._call.cancel()
        self._requests.put(None)  # ends the iterator in which a thread of grpc waits for requests

    def _listen(self) -> None:
        try:
            for data in self._call:
                self._events.put((self, data))
            self._events.put((self, None))
        except grpc.RpcError as error:
            self._events.put((self, error))


_Event = tuple[_Stream, "bytes | grpc.RpcError | None"]


class _Streams:
    """The open streams by connection, and the events from them."""

    def __init__(self, open_stream: Open, explain: Explain) -> None:
        self._open = open_stream
        self._explain = explain
        self._streams: dict[int, _Stream] = {}
        self._events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self._first: _Event | None = None

    def send(self, lane: int, data: bytes) -> None:
        if lane not in self._streams:
            self._streams[lane] = _Stream(lane, self._open, self._events)
        self._streams[lane].send(data)

    def wait(self, seconds: float) -> None:
        """Waits for an event, at most `seconds`."""
        with contextlib.suppress(queue.Empty):
            self._first = self._events.get(timeout=seconds)

    def tell(self, pipeline: Pipeline) -> None:
        """Reports all events to the pipeline."""
        while (event := self._next()) is not None:
            stream, outcome = event
            if self._streams.get(stream.lane) is not stream:
                continue  # the stream was cancelled
            if isinstance(outcome, bytes):
                pipeline.answered(stream.lane, outcome, time.monotonic())
            else:
                self.abandon(stream.lane)
                pipeline.broke(stream.lane, self._reason(outcome, stream.lane), time.monotonic())

    def abandon(self, lane: int) -> None:
        self._streams.pop(lane).close()

    def close(self) -> None:
        for lane in list(self._streams):
            self.abandon(lane)

    def _next(self) -> "_Event | None":
        if self._first is not None:
            event, self._first = self._first, None
            return event
        try:
            return self._events.get_nowait()
        except queue.Empty:
            return None

    def _reason(self, error: grpc.RpcError | None, lane: int) -> CnnserveError:
        if error is None:
            return UnavailableError("the server ended the stream")
        return self._explain(cast("Failure", error), lane)
