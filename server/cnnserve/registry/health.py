"""Whether the server and each model may be sent work, and who wants to hear of a change."""

import asyncio
from collections.abc import AsyncIterator

from cnnserve.errors import ModelNotFound
from cnnserve.registry.registry import Registry


class Health:
    """Derived from the registry and flags of its own: once draining, nothing is SERVING any more.

    The server is SERVING when the models of its start are settled and one is READY, with `strict` every one that is
    still wanted. What comes later never takes readiness away while it loads. `may_be_empty`: models come by call, so a
    server that was told to load none is SERVING without one, or no call would reach it.
    """

    def __init__(self, registry: Registry, *, strict: bool, may_be_empty: bool = False) -> None:
        self._registry = registry
        self._strict = strict
        self._may_be_empty = may_be_empty
        # The names wanted at start; None while they load.
        self._at_start: frozenset[str] | None = None
        self._draining = False
        self._closed = False
        self._changed = asyncio.Event()
        registry.on_change(self._notify)

    @property
    def is_ready(self) -> bool:
        """SERVING as a whole."""
        if self._at_start is None or self._draining:
            return False
        models = self._registry.models
        first = [model for model in models if model.wanted and model.name in self._at_start]
        if self._strict and not all(model.ready for model in first):
            return False
        return any(model.ready for model in models) or (self._may_be_empty and not first)

    def is_serving(self, service: str) -> bool:
        """`""` is the server, any other name a model. Raises `ModelNotFound`."""
        if not service:
            return self.is_ready
        return bool(self._registry.entry(service).ready) and not self._draining

    def started(self) -> None:
        """The models of the start are settled."""
        self._at_start = frozenset(model.name for model in self._registry.models if model.wanted)
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
