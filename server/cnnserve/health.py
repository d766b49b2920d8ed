"""Whether the server and each model may be sent work, and who wants to hear of a change."""

import asyncio
from collections.abc import AsyncIterator

from cnnserve.errors import ModelNotFound
from cnnserve.registry import Registry


class Health:
    """Derived from the registry and one flag of its own: once draining, nothing is SERVING any more."""

    def __init__(self, registry: Registry, *, strict: bool) -> None:
        self._registry = registry
        self._strict = strict
        self._started = False
        self._draining = False
        self._closed = False
        self._changed = asyncio.Event()
        registry.on_change(self._notify)

    @property
    def is_live(self) -> bool:
        """The process answers and is not going away."""
        return not self._draining

    @property
    def is_ready(self) -> bool:
        """SERVING as a whole: every model found at start is settled, at least one (strict: all) READY."""
        return self._started and not self._draining and self._registry.is_serving(strict=self._strict)

    def is_serving(self, service: str) -> bool:
        """`""` is the server, any other name a model. Raises `ModelNotFound`."""
        if not service:
            return self.is_ready
        return bool(self._registry.entry(service).ready) and not self._draining

    def started(self) -> None:
        """The first scan's models are settled."""
        self._started = True
        self._notify()

    def drain(self) -> None:
        """NOT_SERVING from now on."""
        self._draining = True
        self._notify()

    def close(self) -> None:
        """Ends every `watch`."""
        self._closed = True
        self._notify()

    async def watch(self, service: str) -> AsyncIterator[bool | None]:
        """The service's state now and after each change of it; None while no model has that name."""
        last: bool | None = None
        first = True
        while True:
            changed = self._changed
            state = self._state(service)
            if first or state != last:
                first, last = False, state
                yield state
            if self._closed:
                return
            await changed.wait()

    def _state(self, service: str) -> bool | None:
        try:
            return self.is_serving(service)
        except ModelNotFound:
            return None

    def _notify(self) -> None:
        # A new event for the next change: whoever waits on this one wakes exactly once.
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
