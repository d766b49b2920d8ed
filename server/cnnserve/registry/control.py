"""Loading and unloading by call: who may, in which mode, and what of the repository there is to see."""

from functools import partial
from pathlib import Path

from cnnserve.errors import ModelControlOff, PermissionDenied
from cnnserve.process.threads import on_thread
from cnnserve.registry.lifecycle import ModelEntry
from cnnserve.registry.registry import Registry
from cnnserve.repository import folders

EXPLICIT = "explicit"


class ModelControl:
    """The registry's changes, for callers from the network. `allowed`: they may; `mode`: only one has calls."""

    def __init__(self, registry: Registry, root: Path, *, mode: str, allowed: bool) -> None:
        self._registry = registry
        self._root = root
        self._mode = mode
        self.allowed = allowed

    async def load(self, name: str, config: str = "") -> ModelEntry:
        """Loads a model, or loads again what changed. Raises `ModelNotFound`, `ModelLoadFailed` and as `check`.

        `config` is JSON that takes config.pbtxt's place until the next load.
        """
        self.check()
        return await self._registry.load(name, config)

    async def unload(self, name: str) -> ModelEntry:
        """Unloads a model; nothing happens to one that is not loaded. Raises `ModelNotFound` and as `check`."""
        self.check()
        return await self._registry.unload(name)

    async def index(self) -> list[ModelEntry]:
        """Every model of the registry or the repository, by name."""
        known = {model.name: model for model in self._registry.models}
        found = await on_thread(partial(folders.scan, self._root))
        fresh = {folder.name: ModelEntry(folder.name) for folder in found if folder.name not in known}
        return [model for _, model in sorted((known | fresh).items())]

    def check(self) -> None:
        """Before anything is looked at. Raises `PermissionDenied`, `ModelControlOff` where the mode has no calls."""
        if not self.allowed:
            raise PermissionDenied("clients may not load or unload models; start the server with --allow-model-control")
        if self._mode != EXPLICIT:
            raise ModelControlOff(
                f"explicit model load / unload is not allowed in model control mode {self._mode}; "
                "start the server with --model-control-mode explicit"
            )
