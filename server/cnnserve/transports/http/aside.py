"""Runs long work beside the event loop, one piece at a time.

Python's JSON library holds the interpreter for one call, so what runs here has to consist of short calls.
"""

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")

# JSON of this size takes about 1 ms, and handing it to a thread 0.1 ms.
_SHORT_BYTES = 2**16


class Aside:
    """A thread for long work. Use on one event loop."""

    def __init__(self) -> None:
        # What is parsed takes many times its bytes. With one piece at a time, it is there only once.
        self._turn = asyncio.Lock()

    async def run(self, size: int, work: Callable[_P, _R], *arguments: _P.args, **named: _P.kwargs) -> _R:
        """Returns what `work` returns: at once if its `size` in bytes is small, otherwise from a thread."""
        if size <= _SHORT_BYTES:
            return work(*arguments, **named)
        async with self._turn:
            return await asyncio.to_thread(work, *arguments, **named)
