"""The registry: which versions are loaded, which version answers a request, and how one version replaces another.

A new version is loaded and self-tested completely before the old one is unloaded, so a load that fails does not affect
the versions that serve. The changes of one model happen one after the other, in the order in which they were asked for.
Models do not wait for each other, neither to load nor to drain.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from cnnserve.errors import ModelLoadFailed, ModelNotFound, ModelNotReady, ServingError, ShuttingDown
from cnnserve.model.version import Model
from cnnserve.process import heap
from cnnserve.process.threads import on_thread
from cnnserve.registry import version_labels
from cnnserve.registry import wanted_versions as plans
from cnnserve.registry.lifecycle import ModelEntry, State, VersionEntry, VersionLabels
from cnnserve.registry.opening import VersionOpener
from cnnserve.registry.wanted_versions import Plan
from cnnserve.repository import folders
from cnnserve.repository import manifest as manifests
from cnnserve.repository.folders import Fingerprint, ModelFolder
from cnnserve.repository.signature import Trust

_log = logging.getLogger(__name__)

_T = TypeVar("_T")
_CLOSING = "the server is shutting down and loads no more models; send the request to another server"
# Models that an error lists.
_LISTED = 10


# Decides whether a version that failed is loaded again although its files have not changed.
Again = Callable[[VersionEntry], bool]


def _always(_: VersionEntry) -> bool:
    return True


def _never(_: VersionEntry) -> bool:
    return False


def _if_passing(entry: VersionEntry) -> bool:
    return entry.may_pass


class Registry:
    """All models of one model repository. Use it on the event loop only; its blocking work runs on threads.

    `config_name`: if a model has a file configs/NAME.pbtxt, it is read instead of config.pbtxt. `trust`: the keys that
    must have signed all files; None: signatures do not matter.
    """

    def __init__(
        self, root: folders.Models, opener: VersionOpener, config_name: str = "", trust: Trust | None = None
    ) -> None:
        self._root = root
        self.trust = trust
        self._config_name = config_name
        self._opener = opener
        self._models: dict[str, ModelEntry] = {}
        # Weak: a lock exists only while a task holds or awaits it, so names that come and go leave no locks behind.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._jobs: set[asyncio.Task[Any]] = set()
        # What is read from the model repository now, for changes.
        self._reading: set[asyncio.Future[Any]] = set()
        self._listeners: list[Callable[[], None]] = []
        self._starting = False
        self._closing = False
        # Names of models that have had a version with a manifest while this process lives, and of those of which it is
        # known whether any had one at first.
        self._verified: set[str] = set()
        self._examined: set[str] = set()

    @property
    def models(self) -> list[ModelEntry]:
        """Every known model, sorted by name."""
        return [self._models[name] for name in sorted(self._models)]

    def on_change(self, listener: Callable[[], None]) -> None:
        """Registers `listener`, which is called after every change of a state."""
        self._listeners.append(listener)

    def get(self, name: str, version: str = "") -> Model:
        """Returns the READY model for a request: `version`, or the newest READY one if it is "".

        Raises `ModelNotFound`, `VersionNotFound` or `ModelNotReady`. Use the model before the next await: `Model.infer`
        and `classify` take their places in the queue before their first await, and a version ends only after all its
        places are given back. So a version that is replaced at this moment refuses no request.
        """
        entry = self.entry(name)
        if version:
            chosen: VersionEntry | None = entry.versions[version_labels.resolve(entry, version)]
        else:
            chosen = entry.newest
        if chosen is None:
            raise ModelNotReady(f"model '{name}' has no version to serve: {entry.reason}")
        if chosen.state is not State.READY or chosen.model is None:
            raise ModelNotReady(
                f"model '{name}' version {chosen.version} is {chosen.state.value}"
                + (f": {chosen.reason}" if chosen.reason else "")
            )
        return chosen.model

    def is_ready(self, name: str, version: str = "") -> bool:
        """Returns whether `get` would return a model. Raises `VersionNotFound`, or `ModelNotFound` as `state` does."""
        try:
            self.state(name)
            self.get(name, version)
        except ModelNotReady:
            return False
        return True

    def state(self, name: str) -> ModelEntry:
        """Does the same as `entry` for those who may know the state of a model whose name they know.

        The text of `ModelNotFound` names no other model: clients without a token may ask, too.
        """
        try:
            return self.entry(name)
        except ModelNotFound:
            raise ModelNotFound(f"model {name!r} is not in the model repository") from None

    def entry(self, name: str) -> ModelEntry:
        """Returns a model in any state.

        Raises `ModelNotFound`, or `ModelNotReady` if the server has not yet listed the model repository at start.
        """
        try:
            return self._models[name]
        except KeyError:
            if self._starting:
                raise ModelNotReady(
                    f"model {name!r} is not known yet, because the server is starting; try again later"
                ) from None
            known = ", ".join(sorted(self._models)[:_LISTED]) or "no model at all"
            more = f" and {len(self._models) - _LISTED} more" if len(self._models) > _LISTED else ""
            raise ModelNotFound(f"model {name!r} is not in the model repository; it has {known}{more}") from None

    async def load_all(self, names: Collection[str] | None = None) -> None:
        """Loads every model of the model repository, or those in `names`.

        A model that fails does not stop the others. Raises `ModelLoadFailed` if the model repository cannot be read.
        """
        self._starting = True
        try:
            scanned = await on_thread(partial(folders.scan, self._root))
            # Before a load call or a poll may come too late: a manifest could be gone by then.
            self._verified |= await on_thread(lambda: {f.name for f in scanned if manifests.any_manifest(f)})
            self._examined |= {folder.name for folder in scanned}
        finally:
            self._starting = False
        for folder in scanned:
            self._models.setdefault(folder.name, ModelEntry(folder.name))
        for name in await on_thread(partial(folders.misnamed, self._root)):
            _log.warning(
                "folder %r is ignored: a model name has at most 128 letters, digits, '.', '_' and '-' "
                "and begins with a letter or a digit; rename the folder",
                name,
            )
        found = [folder.name for folder in scanned if names is None or folder.name in names]
        for missing in sorted({*(names or ())} - {*found}):
            # A model that was named counts as wanted even without a folder, so that readiness shows that it is missing.
            entry = self._models.setdefault(missing, ModelEntry(missing, "its folder is not in the model repository"))
            entry.wanted = True
            _log.error("model %s is not served: %s", missing, entry.reason)
        await asyncio.gather(*(self.sync(name) for name in found))

    async def load(self, name: str, config: str = "") -> ModelEntry:
        """Updates one model to the state of its folder and returns its entry.

        New, changed and failed versions are loaded; versions that the version policy did not choose are unloaded.
        `config` is JSON that replaces config.pbtxt until the next load. If the caller is cancelled, the load continues.
        Raises `ModelNotFound` if the folder does not exist, `ShuttingDown` if the server stops, and `ModelLoadFailed`
        with the reasons if a version failed; versions that serve are not affected by a failure.
        """
        failures = await self._run(self._bring(name, config=config))
        if failures and self._closing:
            raise ShuttingDown(_CLOSING)
        if failures:
            raise ModelLoadFailed(f"model '{name}': {'; '.join(failures)}")
        return self.entry(name)

    async def sync(self, name: str, only: Collection[int] | None = None, *, again: bool = False) -> None:
        """Does the same as `load`, but logs errors instead of raising, and retries only versions whose files changed.

        `only`: numbers of the finished versions. Other versions are not loaded and, unless they serve, count as absent.
        `again`: also retries versions that failed for a reason that may have passed.
        """
        try:
            await self._run(self._bring(name, only, again=_if_passing if again else _never))
        except ServingError as error:
            _log.warning("model %s: %s", name, error)

    async def unload(self, name: str) -> ModelEntry:
        """Unloads every version of a model after draining it, and returns the model's entry. Raises `ModelNotFound`.

        If the model is not loaded, nothing happens.
        """
        if name not in self._models:
            await on_thread(partial(folders.find, self._root, name))
        return await self._run(self._unload(name))

    async def remove(self, name: str) -> None:
        """Unloads every version of a model whose folder was deleted, and forgets the model."""
        await self._run(self._unload(name, forget=True))

    async def refresh_labels(self) -> None:
        """Reads every `version_labels.json` that has changed."""
        models = [(entry, entry.labels) for entry in self.models]

        def read() -> list[VersionLabels]:
            return [
                version_labels.read_labels(
                    ModelFolder(entry.name, folders.place(self._root, entry.name), {}, trust=self.trust), labels
                )
                for entry, labels in models
            ]

        for (entry, _), labels in zip(models, await on_thread(read), strict=True):
            entry.labels = labels

    async def folder(self, name: str, version: VersionEntry) -> ModelFolder:
        """Returns the folder of a model as the load of one of its versions saw it. Raises `ModelNotFound`."""
        config = version.fingerprint.config if isinstance(version.fingerprint, Fingerprint) else ""
        return (await self._plan(name, None, config)).folder

    async def renew(self, name: str, old: VersionEntry) -> None:
        """Loads a READY version again and replaces it, although its files have not changed. No request is lost.

        If the version does not serve any more, or if the load fails, nothing changes.
        """
        await self._run(self._renew(name, old))

    def stop_loading(self) -> None:
        """Makes every later load fail, and loads in progress fail at once, also if the file system does not respond."""
        self._closing = True
        self._opener.stop()
        for future in self._reading:
            if not future.done():
                future.set_exception(ShuttingDown(_CLOSING))

    def refuse_late(self, seconds: float) -> None:
        """Refuses the requests in all queues that will probably not be answered within `seconds`."""
        for entry in self._models.values():
            for version in entry.versions.values():
                if version.model is not None:
                    version.model.refuse_late(seconds)

    async def close(self) -> None:
        """Unloads every model: drains it and ends its instances."""
        self.stop_loading()
        await asyncio.gather(*(self.unload(name) for name in list(self._models)))

    async def _run(self, change: Coroutine[Any, Any, _T]) -> _T:
        """Runs a change to its end even if its caller is cancelled: half a change would leave an invalid state."""
        job = asyncio.create_task(change)
        self._jobs.add(job)
        job.add_done_callback(self._forget)
        return await asyncio.shield(job)

    def _forget(self, job: asyncio.Task[Any]) -> None:
        self._jobs.discard(job)
        # If the caller was cancelled, nobody reads the exception, and asyncio would log that. So it is read here.
        if not job.cancelled():
            job.exception()
        heap.return_soon()

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

    async def _bring(
        self, name: str, only: Collection[int] | None = None, *, again: Again = _always, config: str = ""
    ) -> list[str]:
        """Loads and unloads a model's versions and returns why each of those that failed did."""
        async with self._lock(name):
            if self._closing:
                raise ShuttingDown(_CLOSING)
            plan = await self._plan(name, only, config)
            await self._examine(plan.folder)
            entry = self._models.setdefault(name, ModelEntry(name))
            entry.wanted, entry.labels, entry.unreadable = True, plan.labels, bool(plan.folder.unreadable)
            self._explain(entry, plan.reason)
            failures = [plan.reason] if plan.reason else []
            for version, fingerprint in plan.chosen.items():
                if only is not None and version not in only:
                    continue
                new = VersionEntry(version, fingerprint)
                folder = replace(plan.folder, verified=name in self._verified)
                if reason := await self._load_version(folder, entry, new, again):
                    failures.append(f"version {version}: {reason}")
            await self._drop(entry, _outdated(entry, plan))
            return failures

    async def _examine(self, folder: ModelFolder) -> None:
        """Finds out whether a model that was not there at start has a version with a manifest."""
        if folder.name not in self._examined and await self._read(partial(manifests.any_manifest, folder)):
            self._verified.add(folder.name)
        self._examined.add(folder.name)

    async def _plan(self, name: str, only: Collection[int] | None, config: str) -> Plan:
        entry = self._models.get(name)
        labels, serving = (entry.labels, entry.ready) if entry else (VersionLabels(), [])
        available = None if only is None else {*only, *(ready.version for ready in serving)}
        try:
            read = partial(plans.read, config=config, config_name=self._config_name, trust=self.trust)
            return await self._read(partial(read, self._root, name, labels, available))
        except ModelNotFound:
            if not serving:
                self._models.pop(name, None)
            raise

    async def _read(self, function: Callable[[], _T]) -> _T:
        """Reads from the model repository on a thread. Raises `ShuttingDown` as soon as the server drains."""
        future = on_thread(function)
        self._reading.add(future)
        try:
            return await future
        finally:
            self._reading.discard(future)

    def _explain(self, entry: ModelEntry, reason: str) -> None:
        if reason and reason != entry.reason:
            _log.warning("model %s %s: %s", entry.name, "stays as it is" if entry.ready else "is not served", reason)
        entry.reason = reason
        self._changed()

    async def _load_version(self, folder: ModelFolder, entry: ModelEntry, new: VersionEntry, again: Again) -> str:
        """Loads a version and returns why it failed; "" if it serves its current files."""
        old = entry.versions.get(new.version)
        keep = old is not None and old.state is State.READY
        if old is not None and keep and old.fingerprint == new.fingerprint:
            old.reason, old.tried, old.may_pass = "", new.fingerprint, False
            return ""
        if old is not None and not again(old) and old.tried == new.fingerprint:
            return old.reason
        if not keep:
            entry.put(new)
            self._changed()
        await self._opener.open(folder, new, self._changed)
        if new.model is not None and new.model.info.manifest is not None:
            self._verified.add(folder.name)
        if old is not None and keep:
            if new.state is State.READY:
                entry.put(new)
                await self._retire(old)
            else:
                old.tried, old.may_pass = new.fingerprint, new.may_pass
                old.reason = f"serves the files that were loaded before, because the reload failed: {new.reason}"
        elif new.model is None and not entry.ready:
            _tell_of_older(folder, entry, new.version)
        self._changed()
        return new.reason

    async def _renew(self, name: str, old: VersionEntry) -> None:
        async with self._lock(name):
            entry = self._models.get(name)
            if self._closing or entry is None or entry.versions.get(old.version) is not old or old.model is None:
                return
            folder = replace(await self.folder(name, old), verified=name in self._verified)
            new = VersionEntry(old.version, old.fingerprint)
            await self._opener.open(folder, new, self._changed)
            # The version may have been taken out of service meanwhile.
            if new.state is State.READY and old.state is State.READY:
                entry.put(new)
                await self._retire(old)
            elif new.model is not None:
                await self._retire(new)
            self._changed()

    async def _drop(self, entry: ModelEntry, numbers: list[int]) -> None:
        await asyncio.gather(*(self._retire(entry.versions[number]) for number in numbers))
        for number in numbers:
            del entry.versions[number]
        if numbers:
            self._changed()

    async def _unload(self, name: str, *, forget: bool = False) -> ModelEntry:
        async with self._lock(name):
            entry = self._models.setdefault(name, ModelEntry(name))
            entry.wanted = False
            await asyncio.gather(*(self._retire(version) for version in entry.ready))
            if forget:
                del self._models[name]
            self._changed()
            return entry

    async def _retire(self, entry: VersionEntry) -> None:
        """Answers the requests that a READY version has accepted, then frees it."""
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


def _tell_of_older(folder: ModelFolder, entry: ModelEntry, failed: int) -> None:
    """Names the newest version that could serve instead of one that failed, but was not asked for."""
    older = [version for version in folder.versions if version < failed and version not in entry.versions]
    if older:
        _log.warning(
            "model %s is not served: version %d failed, and version %d never takes its place by itself; repair version "
            "%d, or serve the older one by version_policy { specific { versions: %d } } in config.pbtxt",
            *(folder.name, failed, max(older), failed, max(older)),
        )


def _outdated(entry: ModelEntry, plan: Plan) -> list[int]:
    """Returns the numbers of the versions to unload.

    These are versions whose folder is gone and, if a version that the version policy chose is READY, every version that
    the version policy did not choose. A folder that cannot be read now has not gone.
    """
    if plan.folder.unreadable:
        return []
    served = any(ready.version in plan.chosen for ready in entry.ready)
    return [v for v in entry.versions if v not in plan.folder.versions or (served and v not in plan.chosen)]
