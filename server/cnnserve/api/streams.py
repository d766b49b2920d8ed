"""A stream of requests, several at work at once, on any service."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from cnnserve.errors import ShuttingDown

# Requests of one stream at work at once; the transport's flow control holds back the rest.
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
    """Each request's answer, in their order or as they are done. One that raises ends the stream.

    Once `draining` is set nothing more is read; what was read is answered, and the stream ends with `ShuttingDown`.
    """
    slots = asyncio.Semaphore(STREAM_LIMIT)
    tasks: asyncio.Queue[asyncio.Task[Answer] | None] = asyncio.Queue()
    reader = asyncio.create_task(_read(_until(requests, draining), answer, slots, tasks, in_order=in_order))
    # Asked for, so that asyncio does not complain where the client has left.
    reader.add_done_callback(lambda task: task.cancelled() or task.exception())
    try:
        while (task := await tasks.get()) is not None:
            yield await task
            # Only now: an answer the client does not take keeps its slot.
            slots.release()
        await reader
        if draining.is_set():
            # So that the client knows: what has no answer was not looked at.
            raise ShuttingDown("the server is shutting down; send what is unanswered to another one")
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
        # Also where the stream broke: what came before is answered.
        await asyncio.gather(*running, return_exceptions=True)
        tasks.put_nowait(None)


async def _until(requests: AsyncIterator[Request], stop: asyncio.Event) -> AsyncIterator[Request]:
    """The stream's requests until it ends or `stop` is set."""
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
