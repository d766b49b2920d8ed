"""Name and version -> model: which versions are loaded, which one answers a request, and how one replaces another.

A new version is loaded and proved in full before the old one is let go, so a load that fails changes nothing that
serves.
"""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path

from cnnserve import loader, model_config, repository
from cnnserve.errors import ModelLoadFailed, ModelNotFound, ModelNotReady, ServingError, VersionNotFound
from cnnserve.lifecycle import ModelEntry, State, VersionEntry
from cnnserve.model import Model
from cnnserve.repository import ModelFolder

_log = logging.getLogger(__name__)


class Registry:
    """All models of one repository. Lives on the event loop; only `loader.open_version` leaves it, for a thread."""

    def __init__(self, root: Path, cpu_threads: int, decoders: Executor) -> None:
        self._root = root
        self._cpu_threads = cpu_threads
        self._decoders = decoders
        self._models: dict[str, ModelEntry] = {}
        self._loads: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._listeners: list[Callable[[], None]] = []

    @property
    def models(self) -> list[ModelEntry]:
        """Every model that was found, by name."""
        return [self._models[name] for name in sorted(self._models)]

    def on_change(self, listener: Callable[[], None]) -> None:
        """Calls `listener` after every change of any state."""
        self._listeners.append(listener)

    def get(self, name: str, version: str = "") -> Model:
        """The READY model for a request. Raises `ModelNotFound`, `VersionNotFound`, `ModelNotReady`."""
        entry = self.entry(name)
        number = repository.parse_version(version)
        if number is None:
            chosen = next(iter(reversed(entry.ready)), None) or next(iter(reversed(entry.versions.values())), None)
        else:
            chosen = entry.versions.get(number)
            if chosen is None:
                known = ", ".join(map(str, entry.versions)) or "none"
                raise VersionNotFound(f"model '{name}' has no version {number}; it has {known}")
        if chosen is None:
            raise ModelNotReady(f"model '{name}' has no version to serve: {entry.reason}")
        if chosen.state is not State.READY or chosen.model is None:
            raise ModelNotReady(
                f"model '{name}' version {chosen.version} is {chosen.state.value}"
                + (f": {chosen.reason}" if chosen.reason else "")
            )
        return chosen.model

    def is_ready(self, name: str, version: str = "") -> bool:
        """Whether `get` would answer. Raises `ModelNotFound`, `VersionNotFound`."""
        try:
            self.get(name, version)
        except ModelNotReady:
            return False
        return True

    def entry(self, name: str) -> ModelEntry:
        """A model in any state. Raises `ModelNotFound`."""
        try:
            return self._models[name]
        except KeyError:
            known = ", ".join(sorted(self._models)[:10]) or "no model at all"
            raise ModelNotFound(f"model {name!r} is not in the repository; it has {known}") from None

    def is_serving(self, *, strict: bool = False) -> bool:
        """Every model found is settled and at least one is READY; `strict`: every one has a READY version."""
        entries = list(self._models.values())
        counts = [bool(entry.ready) for entry in entries]
        return any(counts) and all(entry.settled for entry in entries) and (all(counts) or not strict)

    async def load_all(self) -> None:
        """Loads every model of the repository; one that fails never stops the others."""
        folders = await asyncio.to_thread(repository.scan, self._root)
        for folder in folders:
            self._models.setdefault(folder.name, ModelEntry(folder.name))
        for folder in folders:
            await self.load(folder.name)

    async def load(self, name: str) -> None:
        """Brings one model to what its folder says now: new and changed versions in, versions out of the policy out.

        What fails is told in the version's state and in the log, and leaves what was serving untouched. Raises
        `ModelNotFound` where the folder is not there.
        """
        async with self._loads[name]:
            folder = await asyncio.to_thread(repository.find, self._root, name)
            entry = self._models.setdefault(name, ModelEntry(name))
            chosen = self._choose(folder, entry)
            for version in chosen:
                await self._load_version(folder, entry, version)
            if any(ready.version in chosen for ready in entry.ready):
                await self._drop(entry, [number for number in entry.versions if number not in chosen])

    async def unload(self, name: str) -> None:
        """Drains every version of a model. Raises `ModelNotFound`."""
        entry = self.entry(name)
        async with self._loads[name]:
            await asyncio.gather(*(self._retire(version) for version in entry.ready))

    async def close(self) -> None:
        """Drains every model and ends its instances."""
        await asyncio.gather(*(self.unload(name) for name in list(self._models)))

    def _choose(self, folder: ModelFolder, entry: ModelEntry) -> list[int]:
        entry.reason = ""
        if not folder.versions:
            entry.reason = "its folder holds no version folder (1, 2, 3, ...)"
        else:
            try:
                policy = model_config.version_policy(model_config.read(folder.path))
            except ModelLoadFailed:
                # The newest version fails with this reason when it loads, and stands for all.
                return [max(folder.versions)]
            chosen = policy.choose(list(folder.versions))
            if chosen:
                return chosen
            entry.reason = f"its version_policy names none of the versions {', '.join(map(str, folder.versions))}"
        _log.warning("model %s is not served: %s", folder.name, entry.reason)
        self._changed()
        return []

    async def _load_version(self, folder: ModelFolder, entry: ModelEntry, version: int) -> None:
        fingerprint = await asyncio.to_thread(repository.fingerprint, folder, version)
        old = entry.versions.get(version)
        if old is not None and old.state is State.READY and old.fingerprint == fingerprint:
            return
        new = VersionEntry(version, fingerprint)
        keep = old is not None and old.state is State.READY
        if not keep:
            entry.put(new)
            self._changed()
        await self._open(folder, new)
        if old is not None and keep:
            if new.state is State.READY:
                entry.put(new)
                await self._retire(old)
            else:
                old.reason = f"serves what was loaded before; the reload failed: {new.reason}"
        self._changed()

    async def _open(self, folder: ModelFolder, entry: VersionEntry) -> None:
        """Takes a LOADING entry to READY or UNAVAILABLE."""
        started = time.monotonic()
        name, version = folder.name, entry.version
        try:
            opened = await asyncio.to_thread(loader.open_version, folder, version, self._cpu_threads)
            model = loader.start(opened, self._decoders)
        except ServingError as error:
            entry.move(State.UNAVAILABLE, str(error))
            _log.error("model %s version %d is not served: %s", name, version, error)
        except Exception:
            entry.move(State.UNAVAILABLE, "internal error while loading; the server's log has the cause")
            _log.exception("model %s version %d is not served", name, version)
        else:
            entry.move(State.READY, model=model)
            _log.info("%s", _ready_line(model, time.monotonic() - started))

    async def _drop(self, entry: ModelEntry, versions: list[int]) -> None:
        for version in versions:
            old = entry.versions[version]
            if old.state is State.READY:
                await self._retire(old)
            del entry.versions[version]
        if versions:
            self._changed()

    async def _retire(self, entry: VersionEntry) -> None:
        """Answers what a READY version accepted, then frees it."""
        model = entry.model
        if model is None:
            return
        entry.move(State.UNLOADING, model=model)
        self._changed()
        await model.close()
        entry.move(State.UNAVAILABLE, "unloaded")
        self._changed()

    def _changed(self) -> None:
        for listener in self._listeners:
            listener()


def _ready_line(model: Model, seconds: float) -> str:
    info = model.info
    placement = ", ".join(f"{count} nodes on {provider}" for provider, count in info.placement.items())
    proof = str(info.self_test) if info.self_test else "no manifest: files and preprocessing are unverified"
    return f"model {info.name} version {info.version} READY in {seconds:.2f} s; {placement}; {proof}"
