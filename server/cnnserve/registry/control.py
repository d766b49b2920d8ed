"""Loads and unloads models for clients if the server's settings allow it, and lists the model repository."""

from functools import partial

from cnnserve.errors import ModelControlOff, PermissionDenied
from cnnserve.process.threads import on_thread
from cnnserve.registry.lifecycle import ModelEntry
from cnnserve.registry.registry import Registry
from cnnserve.repository import folders

# Both, so that who finds one of them missing does not find the other one missing next.
_FLAGS = "--model-control-mode explicit --allow-model-control"
EXPLICIT, POLL = "explicit", "poll"


class ModelControl:
    """Changes the registry for clients, but only if `allowed` is True and `mode` is "explicit"."""

    def __init__(self, registry: Registry, root: folders.Models, *, mode: str, allowed: bool) -> None:
        self._registry = registry
        self._root = root
        self._mode = mode
        self.allowed = allowed

    async def load(self, name: str, config: str = "") -> ModelEntry:
        """Loads a model, or the versions of it that changed or failed, and returns its entry.

        `config` is JSON that replaces config.pbtxt until the next load. Raises `ModelNotFound`, `ModelLoadFailed`,
        `ShuttingDown`, the errors of `check`, and `PermissionDenied` if there is a config that only a file may have.
        """
        self.check()
        if config and self._registry.trust is not None:
            raise PermissionDenied(
                "this server accepts signed files only (--trusted-keys), so a load cannot have a config; write it into "
                "the model's config.pbtxt, sign the model's folder, and load the model without one"
            )
        return await self._registry.load(name, config)

    async def unload(self, name: str) -> ModelEntry:
        """Unloads a model and returns its entry. If it is not loaded, nothing happens.

        Raises `ModelNotFound` and the errors of `check`.
        """
        self.check()
        return await self._registry.unload(name)

    async def index(self) -> list[ModelEntry]:
        """Returns every model of the registry or the model repository, sorted by name.

        Raises `ModelLoadFailed` if the model repository cannot be read.
        """
        known = {model.name: model for model in self._registry.models}
        found = await on_thread(partial(folders.scan, self._root))
        fresh = {folder.name: ModelEntry(folder.name) for folder in found if folder.name not in known}
        return [model for _, model in sorted((known | fresh).items())]

    def check(self) -> None:
        """Raises `PermissionDenied` if clients may not change models, `ModelControlOff` if the mode is not explicit.

        Call it before anything else, so that a client without permission learns nothing about the model repository.
        """
        if not self.allowed:
            raise PermissionDenied(f"clients may not load or unload models; start the server with {_FLAGS}")
        if self._mode != EXPLICIT:
            raise ModelControlOff(
                f"explicit model load / unload is not allowed in model control mode {self._mode}; "
                f"start the server with {_FLAGS}"
            )
