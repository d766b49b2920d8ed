"""One model in one process, for many stored images: the server's own session, preprocessing, batches and self-test."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from cnnserve.assembly import loading, parts
from cnnserve.errors import DeadlineExceeded, ModelNotReady, QueueFull, ServingError, ShuttingDown, Unsupported
from cnnserve.model.version import Class, Classification, Model
from cnnserve.transports.ray_plan import Plan

# What a model answers that has a short queue, a timeout in it, or a latency target.
_BUSY = (QueueFull, DeadlineExceeded)
_ATTEMPTS, _PAUSE_S = 1000, 0.05


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
            return await self._outcomes(images)

    async def _outcomes(self, images: Sequence[bytes]) -> list[Outcome]:
        """Returns what came of each image. Raises a `ServingError` that no image has caused."""
        try:
            answer = await self._patiently(images)
        except (ModelNotReady, ShuttingDown, Unsupported, *_BUSY):
            raise
        except ServingError as error:
            if len(images) == 1:
                return [Outcome(error=str(error))]
            # One image makes a run fail, or there are too many for the queue: the others must not pay for that.
            return [outcome for image in images for outcome in await self._outcomes([image])]
        return [
            Outcome(error=str(outcome)) if isinstance(outcome, ServingError) else Outcome(outcome)
            for outcome in answer.outcomes
        ]

    async def _patiently(self, images: Sequence[bytes]) -> Classification:
        """Classifies images again while the model's queue has no room for them in time: nobody waits for them."""
        for left in range(_ATTEMPTS, 0, -1):
            try:
                return await self._model.classify(images, self._task.top_k)
            except _BUSY:
                if left == 1:
                    raise
                await asyncio.sleep(_PAUSE_S)
        raise AssertionError

    def close(self) -> None:
        """Ends the instances."""
        self._loop.run_until_complete(self._parts.registry.close())
        self._parts.decoders.close()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
