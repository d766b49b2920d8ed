"""The HTTP requests in flight, and the wait for their end.

`app` needs this module before it has imported the web framework, so this module does not import the framework.
"""

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from cnnserve.errors import ShuttingDown
from cnnserve.process.admission import MemoryBudget
from cnnserve.transports.http.aside import Aside
from cnnserve.transports.lull import lull


@dataclass(frozen=True)
class Limits:
    """The limits of bodies: `budget` for all bodies together, `max_body_bytes` for each body.

    Large JSON is read and written `aside`, so that the event loop has its turns.
    """

    budget: MemoryBudget
    max_body_bytes: int
    aside: Aside = field(default_factory=Aside)


class InFlight:
    """Counts requests from their first byte to the last byte of their responses. Use on one event loop only."""

    def __init__(self) -> None:
        self.count = 0
        # Set when the drain begins, for responses that would never end.
        self.ending = asyncio.Event()
        self._last_refusal = 0.0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def draining(self) -> bool:
        """Whether the server drains."""
        return self.ending.is_set()

    @contextlib.contextmanager
    def enter(self) -> Iterator[None]:
        """Counts a request while inside. Raises `ShuttingDown` if the server is draining."""
        if self.draining:
            self._last_refusal = asyncio.get_running_loop().time()
            raise ShuttingDown("the server is shutting down; send the request to another server")
        self.count += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.count -= 1
            if not self.count:
                self._idle.set()

    async def drain(self, grace_s: float) -> None:
        """Refuses new requests, waits for those in flight, then for a lull: all within `grace_s` seconds."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + grace_s
        self.ending.set()
        self._last_refusal = loop.time()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await self._idle.wait()
        # Every refusal tells its client to close the connection. If the port closed at once, a client that is sending
        # on an open connection would get no response.
        await lull(lambda: self._last_refusal, deadline)
