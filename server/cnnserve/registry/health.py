"""Readiness: whether the server and each model accept requests, and who wants to know when that changes."""

import asyncio
from collections.abc import AsyncIterator

from cnnserve.errors import ModelNotFound, ModelNotReady
from cnnserve.registry.registry import Registry


class Health:
    """Derives readiness from the registry. While the server drains, nothing is SERVING.

    The server is SERVING if each model to be served at start is loaded or has failed, and one model is READY. With
    `strict`, every model to be served at start must have a READY version; models unloaded since then do not count. A
    model that is loaded later never takes readiness away. `may_be_empty`: clients load the models. If there is no model
    to be served at start, the server is SERVING without a READY model. Otherwise no client would send it a load.
    """

    def __init__(self, registry: Registry, *, strict: bool, may_be_empty: bool = False) -> None:
        self._registry = registry
        self._strict = strict
        self._may_be_empty = may_be_empty
        # Names of the models to be served at start; None until each of them is loaded or has failed.
        self._at_start: frozenset[str] | None = None
        self._draining = False
        self._closed = False
        self._changed = asyncio.Event()
        registry.on_change(self._notify)

    @property
    def is_ready(self) -> bool:
        """Whether the server as a whole is SERVING."""
        if self._at_start is None or self._draining:
            return False
        models = self._registry.models
        first = [model for model in models if model.wanted and model.name in self._at_start]
        if self._strict and not all(model.ready for model in first):
            return False
        return any(model.ready for model in models) or (self._may_be_empty and not first)

    def is_serving(self, service: str) -> bool:
        """Returns whether `service` is SERVING: "" is the server, any other name a model.

        Raises `ModelNotFound`, or `ModelNotReady` for a name that the server does not know yet because it starts.
        """
        if not service:
            return self.is_ready
        return bool(self._registry.state(service).ready) and not self._draining

    def started(self) -> None:
        """Records that each model to be served at start is loaded or has failed."""
        self._at_start = frozenset(model.name for model in self._registry.models if model.wanted)
        self._notify()

    def drain(self) -> None:
        """Makes the server and every model NOT_SERVING from now on."""
        self._draining = True
        self._notify()

    def close(self) -> None:
        """Ends every `watch`."""
        self._closed = True
        self._notify()

    async def watch(self, service: str) -> AsyncIterator[bool | None]:
        """Yields whether `service` is SERVING, now and after each change; None while no model has that name."""
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
        except ModelNotReady:
            return False

    def _notify(self) -> None:
        # The next change gets a new event, so that each task that waits for this change wakes exactly once.
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
