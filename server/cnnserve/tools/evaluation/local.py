"""Asks a version in this process, which the server's own code loads and self-tests. Opens no port."""

import asyncio
import itertools
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from cnnserve.config.settings import DEFAULT_ENGINE_CACHE
from cnnserve.errors import QueueFull, ServingError
from cnnserve.images.decoding_pool import DecodingPool
from cnnserve.model import loader
from cnnserve.model import version as versions
from cnnserve.model.version import MAX_CLASSES, Classification, Model
from cnnserve.model_config import pbtxt
from cnnserve.model_config.execution import Device
from cnnserve.process.cpu import cpu_budget, decoding_threads
from cnnserve.registry import version_labels
from cnnserve.registry.lifecycle import VersionLabels
from cnnserve.repository import folders
from cnnserve.repository.folders import ModelFolder
from cnnserve.repository.version_files import VersionFiles
from cnnserve_client.commands import sources
from cnnserve_client.commands.sources import Entry
from cnnserve_client.errors import CnnserveError, InternalError, InvalidInputError, NotFoundError
from cnnserve_client.images import read_file
from cnnserve_client.results import Class, ImageResult, Timings

from .runner import Latency, Subject, measure

# As much as a client may send by default.
_LARGEST_IMAGE = 64 * 2**20
# Images that are decoded or run together, and how many of these groups: one is decoded while the other one runs.
_GROUP = 32
_GROUPS = 2
_BUSY_S = 0.01
_BUSY_TIMES = 1000


class LocalRunner:
    """The version of a model in a model repository. Use it in a `with` statement.

    `version`: a number or a version label; "": the newest one that the version policy serves. Raises `CnnserveError` if
    the version cannot be loaded.
    """

    def __init__(self, repository: Path, model: str, version: str, device: Device = "cpu") -> None:
        threads = cpu_budget()
        if not repository.is_dir():
            raise InvalidInputError(f"--local {repository} is not a folder: name a model repository")
        try:
            folder = folders.find(repository, model)
            number = _number(folder, version)
            with VersionFiles(folder, number) as files:
                opened = loader.open_version(
                    files, threads, engine_cache=DEFAULT_ENGINE_CACHE, device=device, counts_drift=False
                )
        except ServingError as error:
            raise CnnserveError(f"{repository}: {error}", code="FAILED_PRECONDITION") from error
        self._loop = asyncio.new_event_loop()
        self._decoders = DecodingPool(decoding_threads(threads))
        self._model: Model = self._loop.run_until_complete(self._started(opened))
        info = self._model.info
        self_test = str(info.self_test or info.probe)
        self.subject = Subject(info.name, str(info.version), info.labels, info.class_count, self_test)
        if not self._model.accepts_images:
            self.close()
            raise InvalidInputError(
                f"model {model} version {number} takes no images: publish it with cnnserve export or import"
            )

    async def _started(self, opened: loader.OpenVersion) -> Model:
        return loader.start(opened, self._decoders, self._take_out)

    def _take_out(self, reason: str) -> None:
        self._model.give_up(reason)

    def close(self) -> None:
        """Drops what still runs, and ends the threads."""
        self._model.give_up("the evaluation has ended")
        self._loop.run_until_complete(self._model.close())
        self._decoders.close()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def results(self, entries: Iterable[Entry], top_k: int) -> Generator[ImageResult]:
        """Yields the result of each image, see `Runner`."""
        classes = min(top_k, self.subject.class_count)
        size = max(1, min(_GROUP, self._model.info.settings.max_batch_size, MAX_CLASSES // max(1, classes)))
        groups = iter(entries)
        pending: deque[asyncio.Task[list[ImageResult]]] = deque()
        try:
            while group := tuple(itertools.islice(groups, size)):
                pending.append(self._loop.create_task(self._classify(group, top_k)))
                if len(pending) == _GROUPS:
                    yield from self._loop.run_until_complete(pending.popleft())
            while pending:
                yield from self._loop.run_until_complete(pending.popleft())
        except ServingError as error:
            raise InternalError(f"{self.subject.name} no longer answers: {error}") from error
        finally:
            self._loop.run_until_complete(_cancel(pending))

    def latency(self, entries: Sequence[Entry]) -> Latency | None:
        """Measures decoding and run of single images, see `Runner`."""
        return measure(entries, _LARGEST_IMAGE, self._ask)

    def _ask(self, data: bytes) -> Timings | None:
        found = self._loop.run_until_complete(self._model.classify([data]))
        if isinstance(found.outcomes[0], ServingError):
            return None
        timings = found.timings
        return Timings(timings.queue // 1000, timings.preprocess // 1000, timings.compute // 1000)

    async def _classify(self, group: Sequence[Entry], top_k: int) -> list[ImageResult]:
        read = [_read(entry) for entry in group]
        images = [data for data in read if isinstance(data, bytes)]
        outcomes = iter((await self._answer(images, top_k)).outcomes if images else ())
        version = self.subject.version
        return [data if isinstance(data, ImageResult) else _result(next(outcomes), version) for data in read]

    async def _answer(self, images: list[bytes], top_k: int) -> Classification:
        for _ in range(_BUSY_TIMES):
            try:
                return await self._model.classify(images, top_k)
            except QueueFull:
                # The config allows a queue that is shorter than two groups.
                await asyncio.sleep(_BUSY_S)
        return await self._model.classify(images, top_k)


async def _cancel(tasks: Iterable["asyncio.Task[list[ImageResult]]"]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _number(folder: ModelFolder, version: str) -> int:
    """Returns the number of the version that `version` names. Raises `NotFoundError` and `ServingError`s."""
    labels = version_labels.read_labels(folder, VersionLabels()).versions
    if not version:
        chosen = pbtxt.version_policy(pbtxt.of(folder)).choose(list(folder.versions))
        if chosen:
            return max(chosen)
        raise NotFoundError(f"model {folder.name} has no version to serve: name one as {folder.name}:VERSION")
    number = folders.version_number(version) or labels.get(version)
    if number in folder.versions:
        return number
    known = ", ".join([*map(str, folder.versions), *labels]) or "none"
    raise NotFoundError(f"model {folder.name} has no version {version}: it has {known}")


def _read(entry: Entry) -> bytes | ImageResult:
    try:
        return sources.read(entry, _LARGEST_IMAGE, read_file)
    except InvalidInputError as error:
        return ImageResult(error=error)


def _result(outcome: Sequence[versions.Class] | ServingError, version: str) -> ImageResult:
    if isinstance(outcome, ServingError):
        return ImageResult(error=InvalidInputError(str(outcome)), version=version)
    return ImageResult(tuple(Class(one.index, one.label, one.probability) for one in outcome), version=version)
