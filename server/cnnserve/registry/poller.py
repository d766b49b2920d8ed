"""`--model-control-mode poll`: the registry follows the files of the repository.

Rules:

1. A version with a manifest is loaded as soon as all its files have the sizes the manifest says; its digests are
   compared by the load.
2. Any other change waits until size and time of all its files stayed the same over two polls: a version without a
   manifest, one whose copying stopped half-way (it then fails with the reason), a changed config or label file.
3. A version is tried once for each state of its files: one that failed is tried again when they change.
4. A version or model whose folder is missing in two polls is unloaded.
5. A repository that cannot be read changes nothing.

Models are brought up to date side by side: one that loads, builds or drains for minutes holds up no other.
"""

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from cnnserve.errors import ModelLoadFailed
from cnnserve.process.threads import on_thread
from cnnserve.registry.registry import Registry
from cnnserve.repository import folders
from cnnserve.repository import manifest as manifests
from cnnserve.repository.folders import Fingerprint, ModelFolder

_log = logging.getLogger(__name__)

_SETTLED_AFTER_POLLS = 2


@dataclass(frozen=True)
class Sight:
    """One version's files, and in how many polls they have been the same since."""

    files: Fingerprint
    complete: bool = False
    unchanged: int = 0
    missing: bool = False

    @property
    def may_load(self) -> bool:
        """Rules 1 and 2."""
        return self.complete or self.unchanged >= _SETTLED_AFTER_POLLS


@dataclass(frozen=True)
class ModelSight:
    """One model's versions; `missing`: its folder was not there for the first time."""

    versions: Mapping[int, Sight]
    missing: bool = False

    @property
    def request(self) -> tuple[tuple[int, Fingerprint, bool], ...]:
        """What the registry is asked to make of it; another value means there is something to do."""
        return tuple((number, sight.files, sight.may_load) for number, sight in self.versions.items())

    @property
    def loadable(self) -> frozenset[int]:
        """The versions that are finished."""
        return frozenset(number for number, sight in self.versions.items() if sight.may_load)


def look(root: Path, before: Mapping[str, ModelSight], config_name: str = "") -> dict[str, ModelSight]:
    """The repository now, compared with what was seen before. Blocks. Raises `ModelLoadFailed`: unreadable."""
    now = {folder.name: _look_at(folder, before.get(folder.name)) for folder in folders.scan(root, config_name)}
    gone = {name: sight for name, sight in before.items() if name not in now and not sight.missing}
    return now | {name: replace(sight, missing=True) for name, sight in gone.items()}


def _look_at(folder: ModelFolder, before: ModelSight | None) -> ModelSight:
    seen = before.versions if before else {}
    now = {number: _look_at_version(folder, number, seen.get(number)) for number in folder.versions}
    gone = {number: sight for number, sight in seen.items() if number not in now and not sight.missing}
    now |= {number: replace(sight, missing=True) for number, sight in gone.items()}
    return ModelSight(dict(sorted(now.items())))


def _look_at_version(folder: ModelFolder, version: int, before: Sight | None) -> Sight:
    files = folders.fingerprint(folder, version)
    if before is not None and files == before.files:
        return replace(before, unchanged=before.unchanged + 1, missing=False)
    if before is not None and files.own == before.files.own:
        return Sight(files)
    return Sight(files, _is_complete(folder.versions[version]))


def _is_complete(folder: Path) -> bool:
    """Whether there is a manifest and every file has the size it says."""
    try:
        manifest = manifests.read(folder)
        return manifest is not None and all(
            (folder / name).stat().st_size == expected.bytes for name, expected in manifest.files.items()
        )
    except (ModelLoadFailed, OSError):
        return False


async def watch_labels(registry: Registry, interval_s: float = 0.5) -> None:
    """In every mode: keeps the version labels as their files say, so that no request has to look."""
    while True:
        await asyncio.sleep(interval_s)
        await registry.refresh_labels()


class Poller:
    """Looks at the repository every `interval_s` and tells the registry what changed; `config_name` as there."""

    def __init__(self, registry: Registry, root: Path, interval_s: float, config_name: str = "") -> None:
        self._registry = registry
        self._root = root
        self._config_name = config_name
        self._interval_s = interval_s
        self._seen: dict[str, ModelSight] = {}
        self._asked: dict[str, object] = {}
        self._jobs: dict[str, asyncio.Task[None]] = {}
        self._readable = True

    async def run(self) -> None:
        """Polls until it is cancelled."""
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                await self.poll()
            except Exception:
                # Nothing may end the polling but the server's own end.
                _log.exception("a poll of the model repository failed")

    async def poll(self) -> None:
        """One look; what it finds to do is done by tasks of its own, see `settle`."""
        try:
            self._seen = await on_thread(partial(look, self._root, self._seen, self._config_name), "poll")
        except ModelLoadFailed as error:
            if self._readable:
                _log.error("%s; the models stay as they are", error)
            self._readable = False
            return
        self._readable = True
        known = {model.name for model in self._registry.models}
        for name, sight in self._seen.items():
            news = name not in known or self._asked.get(name) != sight.request
            if news and name not in self._jobs and not sight.missing:
                self._asked[name] = sight.request
                self._start(name, self._registry.sync(name, sight.loadable))
        for name in known - self._seen.keys() - self._jobs.keys():
            self._start(name, self._remove(name))

    async def settle(self) -> None:
        """Waits until everything that was found is done."""
        await asyncio.gather(*self._jobs.values())

    def _start(self, name: str, change: Coroutine[object, object, None]) -> None:
        job = self._jobs[name] = asyncio.create_task(self._guard(name, change))
        job.add_done_callback(lambda _: self._jobs.pop(name))

    async def _guard(self, name: str, change: Coroutine[object, object, None]) -> None:
        try:
            await change
        except Exception:
            _log.exception("model %s could not be brought up to date", name)

    async def _remove(self, name: str) -> None:
        await self._registry.remove(name)
        _log.info("model %s was removed: its folder is gone", name)
