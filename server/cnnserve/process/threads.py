"""Blocking work off the event loop, on threads that hold nothing up.

`asyncio.to_thread` is not used for it: the interpreter joins the threads of a pool before it exits, so a large model
that loads, or a file system that hangs, would keep a server from ending.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from functools import partial
from typing import TypeVar

_T = TypeVar("_T")


def on_thread(function: Callable[[], _T], name: str = "blocking") -> "asyncio.Future[_T]":
    """Calls `function` on a daemon thread of its own. A future that is settled before drops what comes of it."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_T] = loop.create_future()

    def tell(settle: Callable[[], None]) -> None:
        # A loop that is closed has nobody left to tell.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(lambda: None if future.done() else settle())

    def work() -> None:
        try:
            result = function()
        except Exception as error:
            # Under no name of its own: its traceback holds this frame, which would hold it.
            tell(partial(future.set_exception, error))
        else:
            tell(lambda: future.set_result(result))

    threading.Thread(target=work, name=name, daemon=True).start()
    return future
