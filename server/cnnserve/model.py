"""One loaded version of a model and its two uses: tensors in (`infer`), images in (`classify`). Knows no wire."""

import asyncio
import math
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace

import numpy as np

from cnnserve import classification
from cnnserve.batcher import BatchResult, DynamicBatcher
from cnnserve.datatypes import NUMPY_TYPES
from cnnserve.errors import DeadlineExceeded, InvalidInput, ServingError, Unsupported
from cnnserve.instance import Rows
from cnnserve.manifest import Manifest
from cnnserve.model_config import Settings
from cnnserve.preprocessing import ImageSource, Preprocessor
from cnnserve.selftest import SelfTest

# So many quick images are read on the event loop; more go to the decoding threads, in parts that are worth the way.
_INLINE_IMAGES = 4
_QUICK_IMAGES = 16


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a loaded version; a client may see all of it."""

    name: str
    version: int
    settings: Settings
    labels: tuple[str, ...]
    class_count: int
    manifest: Manifest | None
    self_test: SelfTest | None
    placement: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Class:
    """One class of one image; `label` is empty where the model has none."""

    index: int
    label: str
    probability: float


@dataclass(frozen=True)
class Timings:
    """Nanoseconds."""

    queue: int = 0
    preprocess: int = 0
    compute: int = 0


@dataclass(frozen=True)
class Classification:
    """One outcome per image, in order: its classes, most probable first, or its own error."""

    outcomes: list[list[Class] | ServingError]
    timings: Timings


class Model:
    """A READY version. `preprocessor` is None where no manifest says how images become inputs."""

    def __init__(
        self, info: ModelInfo, batcher: DynamicBatcher, preprocessor: Preprocessor | None, decoders: Executor
    ) -> None:
        self.info = info
        self._batcher = batcher
        self._preprocessor = preprocessor
        self._decoders = decoders
        settings = info.settings
        self._reshapes = any(output.reshaped for output in settings.outputs)
        # A free size counts as 1: how large it is, only a request can say.
        dims = settings.input.dims if settings.batched else settings.input.dims[1:]
        self.row_bytes = math.prod(max(size, 1) for size in dims) * NUMPY_TYPES[settings.input.datatype].itemsize

    def __repr__(self) -> str:
        return f"<Model {self.info.name}/{self.info.version} {self._batcher!r}>"

    @property
    def accepts_images(self) -> bool:
        """Whether `classify` works."""
        return self._preprocessor is not None

    async def infer(
        self, tensor: Rows, deadline_ns: int | None = None, priority: int = 0, timeout_us: int = 0
    ) -> BatchResult:
        """Runs a tensor of the input's wire shape; the outputs come in wire shape too. Raises `ServingError`s.

        `priority` 1 is the highest, 0 the model's default; `timeout_us` counts in the queue, where the model allows it.
        """
        rows = self._as_rows(tensor)
        permit = self._batcher.reserve(len(rows), priority)
        try:
            result = await self._batcher.submit(rows, permit, deadline_ns, timeout_us)
        finally:
            permit.release()
        if self._reshapes:
            result = replace(result, outputs=[self._to_wire(*pair) for pair in enumerate(result.outputs)])
        return result

    async def classify(
        self, images: Sequence[ImageSource], top_k: int = 0, deadline_ns: int | None = None
    ) -> Classification:
        """Classifies 1 to max_batch_size images. An image that cannot be read fails alone."""
        if self._preprocessor is None:
            raise Unsupported(
                f"model '{self.info.name}' has no manifest, so how an image becomes its input is unknown; "
                "send tensors with ModelInfer, or export the model with cnnserve"
            )
        self.check_count(len(images), "images")
        permit = self._batcher.reserve(len(images))
        try:
            started = time.monotonic_ns()
            work = _Decoding(self._preprocessor, images, deadline_ns)
            await self._preprocess(work)
            preprocess_ns = time.monotonic_ns() - started
            rows = work.good_rows()
            if not len(rows):
                return Classification([work.errors[index] for index in range(len(images))], Timings(0, preprocess_ns))
            permit.shrink(len(rows))
            result = await self._batcher.submit(rows, permit, deadline_ns)
        finally:
            permit.release()
        classes = iter(self._top_k(result.outputs[0], top_k))
        outcomes = [work.errors.get(index) or next(classes) for index in range(len(images))]
        return Classification(outcomes, Timings(result.queue_ns, preprocess_ns, result.compute_ns))

    async def close(self) -> None:
        """Answers everything accepted, then ends the instances."""
        await self._batcher.close()

    async def _preprocess(self, work: "_Decoding") -> None:
        quick, others = work.sorted_out()
        if not others and len(quick) <= _INLINE_IMAGES:
            work.run(quick)
            return
        parts = [[index] for index in others]
        parts += [quick[start : start + _QUICK_IMAGES] for start in range(0, len(quick), _QUICK_IMAGES)]
        loop = asyncio.get_running_loop()
        jobs = [loop.run_in_executor(self._decoders, work.run, part) for part in parts]
        try:
            await asyncio.gather(*jobs)
        finally:
            # Where it was cancelled or is too late, what has not begun is not decoded any more.
            for job in jobs:
                job.cancel()

    def _top_k(self, rows: Rows, k: int) -> list[list[Class]]:
        scores = rows.reshape(len(rows), -1)
        manifest = self.info.manifest
        if manifest is not None and manifest.activation == "none":
            scores = classification.softmax(scores)
        order = classification.top_k(scores, k)
        values = np.take_along_axis(scores, order, axis=-1)
        return [
            list(map(self._class, indices, probabilities))
            for indices, probabilities in zip(order.tolist(), values.tolist(), strict=True)
        ]

    def _to_wire(self, index: int, output: Rows) -> Rows:
        """An output as its config declares it, where that is not the file's own shape."""
        settings = self.info.settings
        tensor = settings.outputs[index]
        if not tensor.reshaped:
            return output
        return output.reshape(*([len(output)] if settings.batched else []), *tensor.dims)

    def _class(self, index: int, probability: float) -> Class:
        labels = self.info.labels
        return Class(index, labels[index] if labels else "", probability)

    def check_count(self, count: int, what: str) -> None:
        """Raises `InvalidInput` unless one request may carry `count` of `what`."""
        limit = self.info.settings.max_batch_size
        if count < 1:
            raise InvalidInput(f"the request has no {what}; send 1 to {limit}")
        if count > limit:
            raise InvalidInput(
                f"the request has {count} {what}, model '{self.info.name}' takes at most {limit}; send several requests"
            )

    def _as_rows(self, tensor: Rows) -> Rows:
        settings = self.info.settings
        spec = settings.input
        expected_type = NUMPY_TYPES[spec.datatype]
        if tensor.dtype != expected_type:
            raise InvalidInput(f"input '{spec.name}' has type {tensor.dtype}, expected {spec.datatype}")
        dims = tensor.shape[1:] if settings.batched else tensor.shape
        if len(dims) != len(spec.dims) or any(want not in (-1, got) for got, want in zip(dims, spec.dims, strict=True)):
            wanted = [*([-1] if settings.batched else []), *spec.dims]
            raise InvalidInput(f"input '{spec.name}' has shape {list(tensor.shape)}, expected {wanted}")
        if 0 in dims:
            raise InvalidInput(f"input '{spec.name}' has shape {list(tensor.shape)}; no size may be 0")
        rows = tensor if settings.input_reshape is None else tensor.reshape(-1, *settings.input_reshape)
        self.check_count(len(rows), "rows")
        return rows


class _Decoding:
    """One request's images on their way to rows; `errors` has an image's own error by its index."""

    def __init__(self, preprocessor: Preprocessor, images: Sequence[ImageSource], deadline_ns: int | None) -> None:
        self.images = images
        self.errors: dict[int, ServingError] = {}
        self._preprocessor = preprocessor
        self._deadline_ns = deadline_ns
        self._rows = preprocessor.empty(len(images))

    def sorted_out(self) -> tuple[list[int], list[int]]:
        """Which images are quick to read, and which are not."""
        quick: list[int] = []
        others: list[int] = []
        for index, image in enumerate(self.images):
            (quick if self._preprocessor.is_quick(image) else others).append(index)
        return quick, others

    def run(self, indices: Sequence[int]) -> None:
        """Reads some of the images; on any thread. Raises `DeadlineExceeded`."""
        for index in indices:
            if self._deadline_ns is not None and self._deadline_ns <= time.monotonic_ns():
                raise DeadlineExceeded("the deadline passed before the images were read")
            try:
                self._rows[index] = self._preprocessor.row(self.images[index])
            except ServingError as error:
                self.errors[index] = error

    def good_rows(self) -> Rows:
        """The rows of the images that could be read, in order."""
        if not self.errors:
            return self._rows
        return np.delete(self._rows, list(self.errors), axis=0)
