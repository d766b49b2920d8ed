"""The HTTP requests at work, and how their end is waited for. Imports no web framework: `app` needs it at once."""

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from cnnserve.errors import ShuttingDown
from cnnserve.process.admission import MemoryBudget
from cnnserve.transports.lull import lull


@dataclass(frozen=True)
class Limits:
    """What bodies may hold: each of them, and all together."""

    budget: MemoryBudget
    max_body_bytes: int


class InFlight:
    """Requests between their first and their last byte. Use on one event loop only."""

    def __init__(self) -> None:
        self.count = 0
        self.draining = False
        self._last_refusal = 0.0
        self._idle = asyncio.Event()
        self._idle.set()

    @contextlib.contextmanager
    def enter(self) -> Iterator[None]:
        """Counts a request while inside. Raises `ShuttingDown` for one that comes while it drains."""
        if self.draining:
            self._last_refusal = asyncio.get_running_loop().time()
            raise ShuttingDown("the server is shutting down; send the request to another one")
        self.count += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.count -= 1
            if not self.count:
                self._idle.set()

    async def drain(self, grace_s: float) -> None:
        """Refuses new requests and waits at most `grace_s` seconds for those at work, then for who is still to come."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + grace_s
        self.draining = True
        self._last_refusal = loop.time()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await self._idle.wait()
        # Every refusal tells its client to close the connection. One that still sends on an open connection would be
        # cut off without an answer where the port closed at once.
        await lull(lambda: self._last_refusal, deadline)
