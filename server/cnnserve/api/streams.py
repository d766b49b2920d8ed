"""Streams of requests with several requests in flight, for any service."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from cnnserve.errors import ShuttingDown

# At most this many requests of one stream are in flight. The transport's flow control holds back the others.
STREAM_LIMIT = 64

Request = TypeVar("Request")
Answer = TypeVar("Answer")


async def answers(
    requests: AsyncIterator[Request],
    answer: Callable[[Request], Coroutine[Any, Any, Answer]],
    draining: asyncio.Event,
    *,
    in_order: bool,
) -> AsyncIterator[Answer]:
    """Yields the response to each request: in the order of the requests, or as soon as it is complete.

    An error that `answer` raises ends the stream. As soon as `draining` is set, no more requests are read; the stream
    yields the responses to those that were read, then raises `ShuttingDown`.
    """
    slots = asyncio.Semaphore(STREAM_LIMIT)
    tasks: asyncio.Queue[asyncio.Task[Answer] | None] = asyncio.Queue()
    reader = asyncio.create_task(_read(until(requests, draining), answer, slots, tasks, in_order=in_order))
    # If the client has disconnected, nobody else retrieves the exception, and asyncio would log an error.
    reader.add_done_callback(lambda task: task.cancelled() or task.exception())
    try:
        while (task := await tasks.get()) is not None:
            yield await task
            # Not earlier: a response that the client has not taken yet counts towards the limit.
            slots.release()
        await reader
        if draining.is_set():
            # From this error the client knows that the server has not begun the requests without a response.
            raise ShuttingDown("the server is shutting down; send the requests without a response to another server")
    finally:
        reader.cancel()


async def _read(
    requests: AsyncIterator[Request],
    answer: Callable[[Request], Coroutine[Any, Any, Answer]],
    slots: asyncio.Semaphore,
    tasks: asyncio.Queue[asyncio.Task[Answer] | None],
    *,
    in_order: bool,
) -> None:
    running: set[asyncio.Task[Answer]] = set()
    try:
        async for request in requests:
            await slots.acquire()
            task = asyncio.create_task(answer(request))
            running.add(task)
            task.add_done_callback(running.discard)
            if in_order:
                tasks.put_nowait(task)
            else:
                task.add_done_callback(tasks.put_nowait)
    except asyncio.CancelledError:
        for task in running:
            task.cancel()
        raise
    finally:
        # Also if reading failed: the requests that were read before get their responses.
        await asyncio.gather(*running, return_exceptions=True)
        tasks.put_nowait(None)


async def until(requests: AsyncIterator[Request], stop: asyncio.Event) -> AsyncIterator[Request]:
    """Yields the stream's requests until the stream ends or `stop` is set."""
    stopped = asyncio.ensure_future(stop.wait())
    pending: asyncio.Future[Request] | None = None
    try:
        while not stop.is_set():
            pending = asyncio.ensure_future(anext(requests))
            await asyncio.wait((pending, stopped), return_when=asyncio.FIRST_COMPLETED)
            if not pending.done():
                return
            try:
                yield pending.result()
            except StopAsyncIteration:
                return
    finally:
        stopped.cancel()
        if pending is not None:
            pending.cancel()
