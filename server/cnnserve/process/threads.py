"""Runs blocking work on threads that do not delay the exit.

The interpreter joins the threads of a pool before it exits. With `asyncio.to_thread`, the load of a large model or a
file system that does not respond would therefore keep the server from exiting.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from functools import partial
from typing import TypeVar

_T = TypeVar("_T")


def on_thread(function: Callable[[], _T], name: str = "blocking") -> "asyncio.Future[_T]":
    """Calls `function` on a new daemon thread and returns a future of its result.

    If the future is already done when `function` ends, for example because it was cancelled, the result or the
    exception is dropped.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_T] = loop.create_future()

    def tell(settle: Callable[[], None]) -> None:
        # If the event loop is closed, nobody waits for the result any more.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(lambda: None if future.done() else settle())

    def work() -> None:
        try:
            result = function()
        except Exception as error:
            # The exception must not stay in a variable: its traceback refers to this frame, which would be a cycle.
            tell(partial(future.set_exception, error))
        else:
            tell(lambda: future.set_result(result))

    threading.Thread(target=work, name=name, daemon=True).start()
    return future
