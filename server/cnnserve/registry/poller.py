"""`--model-control-mode poll`: the registry follows the files of the model repository.

Rules:

1. A version with a manifest is loaded as soon as all its files have the sizes in the manifest. The load compares the
   digests.
2. Any other change waits for two more polls in which all files have the same inode, size and time. Such changes are a
   version without a manifest, a changed config or label file, and a version whose copying has stopped half-way, which
   then fails with the reason.
3. A version is tried once for each state of its files. If it failed, it is tried again after its files have changed. If
   it failed for a reason that may pass (the file system, no memory, too little time), or if the load read other files
   than those that are there before and after it, it is also tried again after one poll interval, then after twice that
   time, and so on, up to 5 minutes.
4. If the folder of a version or a model is missing in two polls, the version or model is unloaded.
5. If the model repository cannot be read, nothing changes, and if the folder of a model or a version cannot be read, it
   has not gone: nothing of it is unloaded.

Models are updated in parallel: a model that loads, builds or drains for minutes delays no other model.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from functools import partial

from cnnserve.errors import ModelLoadFailed
from cnnserve.process.threads import on_thread
from cnnserve.registry.lifecycle import ModelEntry
from cnnserve.registry.registry import Registry
from cnnserve.repository import folders
from cnnserve.repository import manifest as manifests
from cnnserve.repository.folders import Fingerprint, ModelFolder
from cnnserve.repository.signature import Trust
from cnnserve.repository.version_files import VersionFiles

_log = logging.getLogger(__name__)

_SETTLED_AFTER_POLLS = 2
# The longest pause before a version that failed for a reason that may pass is tried again, in seconds.
_LONGEST_PAUSE_S = 300.0
# Between the polls that follow a request to look, in seconds.
_HURRY_S = 0.5


@dataclass(frozen=True)
class Sight:
    """The files of one version, and the number of polls since then in which they were unchanged."""

    files: Fingerprint
    complete: bool = False
    unchanged: int = 0
    missing: bool = False

    @property
    def may_load(self) -> bool:
        """Whether rule 1 or rule 2 allows loading the version."""
        return self.complete or self.unchanged >= _SETTLED_AFTER_POLLS


@dataclass(frozen=True)
class ModelSight:
    """The versions of one model. `missing`: the last poll was the first one that did not find its folder."""

    versions: Mapping[int, Sight]
    missing: bool = False

    @property
    def request(self) -> tuple[tuple[int, Fingerprint, bool], ...]:
        """What the registry has to bring the model to. If it differs from the last request, there is work to do."""
        return tuple((number, sight.files, sight.may_load) for number, sight in self.versions.items())

    @property
    def loadable(self) -> frozenset[int]:
        """The numbers of the versions that may be loaded."""
        return frozenset(number for number, sight in self.versions.items() if sight.may_load)


def look(
    root: folders.Models, before: Mapping[str, ModelSight], config_name: str = "", trust: Trust | None = None
) -> dict[str, ModelSight]:
    """Returns the models found now, compared with those found before. Blocks.

    Raises `ModelLoadFailed` if the model repository cannot be read.
    """
    found = folders.scan(root, config_name, trust)
    now = {folder.name: _look_at(folder, before.get(folder.name)) for folder in found}
    gone = {name: sight for name, sight in before.items() if name not in now and not sight.missing}
    return now | {name: replace(sight, missing=True) for name, sight in gone.items()}


def _look_at(folder: ModelFolder, before: ModelSight | None) -> ModelSight:
    if folder.unreadable:
        return replace(before, missing=False) if before else ModelSight({})
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
    return Sight(files, _is_complete(folder, version))


def _is_complete(folder: ModelFolder, version: int) -> bool:
    """Returns whether there is a manifest and every file has the size in it."""
    try:
        with VersionFiles(folder, version) as files:
            manifest = manifests.read_from(files)
            return manifest is not None and all(
                files.size(name) == expected.bytes for name, expected in manifest.files.items()
            )
    except (ModelLoadFailed, OSError):
        return False


async def watch_labels(registry: Registry, interval_s: float = 0.5) -> None:
    """Reads changed version labels every `interval_s` seconds, so that no request has to read them.

    It runs in every model control mode, until it is cancelled.
    """
    while True:
        await asyncio.sleep(interval_s)
        await registry.refresh_labels()


class Poller:
    """Looks at the model repository every `interval_s` seconds and passes changes to the registry.

    `config_name`: as in `Registry`. `clock`: returns the time in seconds.
    """

    def __init__(
        self,
        registry: Registry,
        root: folders.Models,
        interval_s: float,
        config_name: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._registry = registry
        self._root = root
        self._config_name = config_name
        self._interval_s = interval_s
        self._seen: dict[str, ModelSight] = {}
        self._asked: dict[str, object] = {}
        self._jobs: dict[str, asyncio.Task[None]] = {}
        # By model: when to try again what failed for a reason that may pass, and the pause after that.
        self._retries: dict[str, tuple[float, float]] = {}
        self._readable = True

    async def run(self, look: asyncio.Event | None = None) -> None:
        """Polls until it is cancelled.

        If `look` is set, polls at once, and soon again until files without a manifest are known to be unchanged.
        """
        look = look or asyncio.Event()
        hurried = 0
        while True:
            pause_s = min(_HURRY_S, self._interval_s) if hurried else self._interval_s
            hurried = max(0, hurried - 1)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(look.wait(), pause_s)
                look.clear()
                _log.info("SIGHUP: looking for changed files")
                hurried = _SETTLED_AFTER_POLLS
            try:
                await self.poll()
            except Exception:
                # After any error polling must continue, until the server stops.
                _log.exception("a poll of the model repository failed")

    async def poll(self) -> None:
        """Looks at the model repository once. Separate tasks make the changes; `settle` waits for them."""
        try:
            self._seen = await on_thread(
                partial(look, self._root, self._seen, self._config_name, self._registry.trust), "poll"
            )
        except ModelLoadFailed as error:
            if self._readable:
                _log.error("%s; the models stay as they are until it can be read again", error)
            self._readable = False
            return
        self._readable = True
        known = {model.name: model for model in self._registry.models}
        for name, sight in self._seen.items():
            # A version that a label names is served, too. `watch_labels` reads the labels.
            wanted = (sight.request, {*known[name].labels.versions.values()} if name in known else set())
            news = name not in known or self._asked.get(name) != wanted
            if name in self._jobs:
                continue
            again = self._is_due(name, known.get(name))
            if (news or again) and not sight.missing:
                self._asked[name] = wanted
                self._start(name, self._registry.sync(name, sight.loadable, again=again))
        for name in known.keys() - self._seen.keys() - self._jobs.keys():
            self._start(name, self._remove(name))

    async def settle(self) -> None:
        """Waits until all changes that were found are made."""
        await asyncio.gather(*self._jobs.values())

    def _is_due(self, name: str, model: ModelEntry | None) -> bool:
        """Returns whether it is time to try again what may pass: a failure, or that a load read other files."""
        if model is None or not (model.may_pass or self._differs(model)):
            self._retries.pop(name, None)
            return False
        now = self._clock()
        due, pause_s = self._retries.setdefault(name, (now + self._interval_s, 2 * self._interval_s))
        if now < due:
            return False
        self._retries[name] = (now + pause_s, min(2 * pause_s, max(_LONGEST_PAUSE_S, self._interval_s)))
        return True

    def _differs(self, model: ModelEntry) -> bool:
        """Returns whether a load read other files than those seen now: files may change, and change back, meanwhile."""
        seen = {number: sight.files for number, sight in self._seen[model.name].versions.items() if sight.may_load}
        return any(seen.get(number, entry.tried) != entry.tried for number, entry in model.versions.items())

    def _start(self, name: str, change: Coroutine[object, object, None]) -> None:
        job = self._jobs[name] = asyncio.create_task(self._guard(name, change))
        job.add_done_callback(lambda _: self._jobs.pop(name))

    async def _guard(self, name: str, change: Coroutine[object, object, None]) -> None:
        try:
            await change
        except Exception:
            _log.exception("model %s could not be updated", name)

    async def _remove(self, name: str) -> None:
        await self._registry.remove(name)
        _log.info("model %s was removed: its folder is gone", name)
