"""One model in one process, for many stored images: the server's own session, preprocessing, batches and self-test."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from cnnserve.assembly import loading, parts
from cnnserve.errors import ModelNotReady, ServingError
from cnnserve.model.version import Class, Model
from cnnserve.transports.ray_plan import Plan


@dataclass(frozen=True)
class Outcome:
    """What came of one image: its classes, most probable first, or the reason why it has none."""

    classes: Sequence[Class] = ()
    error: str | None = None


@dataclass(frozen=True)
class Task:
    """What is to be classified with: a model of a plan with one deployment, and the number of classes (0: default)."""

    plan: Plan
    model: str
    top_k: int = 0


class Worker:
    """Loads the model and passes its self-test, or raises a `ServingError` or `ConfigError` with the reason. Blocks."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._loop = asyncio.new_event_loop()
        self._loop.run_until_complete(self._start())

    async def _start(self) -> None:
        config = self._task.plan.config(self._task.plan.deployments[self._task.model])
        self._parts = parts.assemble(config)
        await loading.load_first(config, self._parts.registry)
        self._model: Model = self._parts.registry.get(self._task.model)

    @property
    def version(self) -> int:
        """The number of the version."""
        return self._model.info.version

    def classify(self, images: Sequence[bytes | str]) -> list[Outcome]:
        """Returns the outcome of each image. A text in place of an image is the reason why it could not be read."""
        return self._loop.run_until_complete(self._all(images))

    async def _all(self, images: Sequence[bytes | str]) -> list[Outcome]:
        good = [image for image in images if isinstance(image, bytes)]
        size = self._model.info.settings.max_batch_size
        # As many requests as the instances run at a time, and as many that are decoded meanwhile.
        slots = asyncio.Semaphore(2 * self._model.instances)
        groups = [good[start : start + size] for start in range(0, len(good), size)]
        rows = await asyncio.gather(*(self._group(group, slots) for group in groups))
        found = iter([outcome for group in rows for outcome in group])
        return [Outcome(error=image) if isinstance(image, str) else next(found) for image in images]

    async def _group(self, images: Sequence[bytes], slots: asyncio.Semaphore) -> list[Outcome]:
        async with slots:
            try:
                answer = await self._model.classify(images, self._task.top_k)
            except ModelNotReady:
                raise
            except ServingError as error:
                return [Outcome(error=str(error))] * len(images)
        return [
            Outcome(error=str(outcome)) if isinstance(outcome, ServingError) else Outcome(outcome)
            for outcome in answer.outcomes
        ]

    def close(self) -> None:
        """Ends the instances."""
        self._loop.run_until_complete(self._parts.registry.close())
        self._parts.decoders.close()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
