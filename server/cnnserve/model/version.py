"""A loaded version of a model: `infer` runs tensors, `classify` classifies images. Knows no protocol."""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from cnnserve.batching.batcher import BatchResult, DynamicBatcher, OnDone
from cnnserve.batching.drift import Drift
from cnnserve.batching.row_check import RowKind, is_finite
from cnnserve.batching.statistics import Statistics
from cnnserve.datatypes import NUMPY_TYPES, WORDS, Rows
from cnnserve.errors import BadAnswer, DeadlineExceeded, InvalidInput, ServingError, Unsupported
from cnnserve.images.decoding_pool import DecodingPool, Share
from cnnserve.images.decoding_times import DecodingTimes
from cnnserve.images.preprocessing import ImageSource, Preprocessor
from cnnserve.model import class_rows, classification
from cnnserve.model.class_rows import ClassRows
from cnnserve.model.image_rows import ImageRows
from cnnserve.model.selftest import Probe, SelfTest
from cnnserve.model_config.settings import Settings
from cnnserve.repository.folders import ModelFolder
from cnnserve.repository.manifest import Manifest
from cnnserve.wire.model_config_pb2 import ModelConfig

# Softmax and sorting of this many values take a few ms on the event loop. Larger outputs go to a thread.
_INLINE_VALUES = 250_000
_NS_PER_VALUE = 20.0
# Two objects of each class are made, one of them in the response. More than these take over a millisecond and are made
# on a thread.
INLINE_CLASSES = 1000
_NS_PER_CLASS = 1000
MAX_CLASSES = 100_000


@dataclass(frozen=True)
class ModelInfo:
    """All that is known about a loaded version. Clients may see all of it but `folder`."""

    name: str
    version: int
    settings: Settings
    labels: tuple[str, ...]
    class_count: int
    manifest: Manifest | None
    self_test: SelfTest | None
    # The result of the probe if there is no manifest; otherwise None.
    probe: Probe | None = None
    placement: dict[str, int] = field(default_factory=dict)
    # The config in force: the settings of config.pbtxt, and those that were derived.
    config: ModelConfig = field(default_factory=ModelConfig)
    # Where the version's files were when it was loaded. No client sees it.
    folder: ModelFolder | None = None

    # Whether the server is to find the layout, and has not found it yet.
    wants_layout: bool = False

    @property
    def rows(self) -> ClassRows:
        """What the rows of the classes are, as the manifest declares or the probe found."""
        if self.manifest is not None:
            return class_rows.stated(self.manifest)
        return self.probe.rows if self.probe is not None else ClassRows(RowKind.ANY)


@dataclass(frozen=True)
class Class:
    """One class of one image. `label` is empty if the model has no label for it."""

    index: int
    label: str
    probability: float


@dataclass(frozen=True)
class Timings:
    """Times of one request in ns, when its run began on the monotonic clock, and the number of rows in the run."""

    queue: int = 0
    preprocess: int = 0
    compute: int = 0
    run_started: int = 0
    batch_size: int = 0


@dataclass(frozen=True)
class Classification:
    """The outcome of each image, in order: its classes, most probable first, or its own error."""

    outcomes: list[list[Class] | ServingError]
    timings: Timings


class Model:
    """A READY version. `preprocessor` is None if the model takes no images."""

    def __init__(
        self,
        info: ModelInfo,
        batcher: DynamicBatcher,
        preprocessor: Preprocessor | None,
        decoders: DecodingPool,
        drift: Drift | None = None,
    ) -> None:
        self.info = info
        # What counts the answers; None: nothing does.
        self.drift = drift
        self._batcher = batcher
        self._preprocessor = preprocessor
        self._decoders = decoders
        self._times = DecodingTimes()
        settings = info.settings
        self._reshapes = any(output.reshaped for output in settings.outputs)
        # A free size counts as 1, because only a request determines it.
        dims = settings.input.dims if settings.batched else settings.input.dims[1:]
        self.row_bytes = math.prod(max(size, 1) for size in dims) * NUMPY_TYPES[settings.input.datatype].itemsize

    def __repr__(self) -> str:
        return f"<Model {self.info.name}/{self.info.version} {self._batcher!r}>"

    @property
    def accepts_images(self) -> bool:
        """Whether the model takes images."""
        return self._preprocessor is not None

    @property
    def statistics(self) -> Statistics:
        """Statistics since the version was loaded."""
        return self._batcher.statistics

    @property
    def instances(self) -> int:
        """Number of instances, each of which runs one batch at a time."""
        return self._batcher.instances

    @property
    def waiting(self) -> int:
        """Number of requests that wait for an instance."""
        return self._batcher.waiting

    @property
    def is_idle(self) -> bool:
        """Whether no request is accepted and not yet answered."""
        return self._batcher.is_idle

    async def infer(
        self, tensor: Rows, deadline_ns: int | None = None, priority: int = 0, timeout_us: int = 0
    ) -> BatchResult:
        """Runs a tensor of the input's wire shape and returns the outputs in wire shape. Raises `ServingError`s.

        `priority`: 1 is the highest, 0 means the model's default. `timeout_us`: longest time in the queue, if the model
        lets requests set it.
        """
        started_ns = time.monotonic_ns()
        self.check_input(WORDS[tensor.dtype], tensor.shape)
        self._check_values(tensor)
        reshape = self.info.settings.input_reshape
        rows = tensor if reshape is None else tensor.reshape(-1, *reshape)
        with self.statistics.counting_failure(started_ns), self._batcher.reserve(len(rows), priority) as permit:
            result = await self._batcher.submit(rows, permit, deadline_ns, timeout_us)
            _check_rows(result, "row")
        self._count(result, len(rows), started_ns)
        return self._in_wire_shape(result)

    @property
    def is_untimed(self) -> bool:
        """Whether the queue has no time limit except the deadlines of requests."""
        return self._batcher.is_untimed

    def start_infer(self, tensor: Rows, on_done: OnDone, deadline_ns: int | None) -> Callable[[], bool]:
        """Queues a tensor that `check_input` accepted and returns at once. `on_done` gets what `infer` gives or raises.

        Returns a function that withdraws the request; the function returns False if the request has already ended. No
        timer watches the deadline. Raises `ServingError`s if the queue is full.
        """
        started_ns = time.monotonic_ns()
        self._check_values(tensor)
        reshape = self.info.settings.input_reshape
        rows = tensor if reshape is None else tensor.reshape(-1, *reshape)
        count = len(rows)

        def done(outcome: BatchResult | Exception) -> None:
            if isinstance(outcome, BatchResult) and outcome.bad_rows:
                outcome = _bad_answer(outcome, "row")
            if isinstance(outcome, Exception):
                self.statistics.failed(outcome, started_ns)
                on_done(outcome)
            else:
                self._count(outcome, count, started_ns)
                on_done(self._in_wire_shape(outcome))

        try:
            entry = self._batcher.enqueue(rows, self._batcher.reserve(count), done, deadline_ns)
        except ServingError as error:
            self.statistics.failed(error, started_ns)
            raise

        def withdraw() -> bool:
            if entry.on_done is None:
                return False
            self._batcher.withdraw(entry)
            is_late = deadline_ns is not None and deadline_ns <= time.monotonic_ns()
            self.statistics.failed(DeadlineExceeded() if is_late else asyncio.CancelledError(), started_ns)
            return True

        return withdraw

    async def infer_images(
        self,
        images: Sequence[ImageSource],
        deadline_ns: int | None = None,
        priority: int = 0,
        timeout_us: int = 0,
        client: str = "",
    ) -> BatchResult:
        """Preprocesses images and runs them as `infer` does. One image that fails makes the request fail.

        `client` is the connection that the images came from. Raises `ServingError`s.
        """
        share = Share(self._decoders, client)
        work, result, _ = await self._run_images(images, share, deadline_ns, priority, timeout_us, alone=False)
        if result is None:
            index = min(work.errors)
            raise InvalidInput(f"image {index} of {len(images)}: {work.errors[index]}")
        return self._in_wire_shape(result)

    async def classify(
        self, images: Sequence[ImageSource], top_k: int = 0, deadline_ns: int | None = None, client: str = ""
    ) -> Classification:
        """Returns `top_k` classes of each of 1 to max_batch_size images. An image fails alone.

        An image fails if it cannot be read, or if the model's row for it is bad. `client` is the connection that the
        images came from. Raises `ServingError`s.
        """
        self._check_has_classes()
        self._check_classes(len(images), top_k)
        share = Share(self._decoders, client)
        work, result, preprocess_ns = await self._run_images(images, share, deadline_ns)
        if result is None:
            return Classification([work.errors[index] for index in range(len(images))], Timings(0, preprocess_ns))
        rows = result.outputs[self.info.settings.label_output]
        if result.bad_rows:
            rows = np.delete(rows, list(result.bad_rows), axis=0)
            work.fail_rows({row: _bad_row(f"row {row}", why) for row, why in result.bad_rows.items()})
        classes = iter(await self._classes(rows, top_k, share) if len(rows) else [])
        outcomes = [work.errors.get(index) or next(classes) for index in range(len(images))]
        return Classification(
            outcomes, Timings(result.queue_ns, preprocess_ns, result.compute_ns, result.started_ns, result.batch_size)
        )

    async def image_row(self, image: ImageSource, deadline_ns: int | None = None, client: str = "") -> Rows:
        """Returns the row (1, ...) that the model gets for an image. Nothing is run. Raises `ServingError`s."""
        work = ImageRows(self._images_reader(), [image], deadline_ns, self._times)
        await work.read(Share(self._decoders, client))
        if work.errors:
            raise work.errors[0]
        return work.good_rows()

    def picture(self, row: Rows) -> bytes:
        """Returns a PNG of a row (1, ...) of `image_row`. Takes some ms. Raises `Unsupported`."""
        return self._images_reader().picture(row[0])

    @property
    def channels_last(self) -> bool:
        """Whether the rows of images are height x width x channels, not channels x height x width."""
        return self._images_reader().channels_last

    async def run_last(self, rows: Rows, deadline_ns: int | None = None) -> tuple[Rows, int]:
        """Runs rows of `image_row` after the requests of all priorities.

        Returns the probabilities (N, classes) and the time of the run in ns. Raises `ServingError`s.
        """
        self._check_has_classes()
        started_ns = time.monotonic_ns()
        with self.statistics.counting_failure(started_ns), self._batcher.reserve(len(rows)) as permit:
            result = await self._batcher.submit(rows, permit, deadline_ns, last=True)
            _check_rows(result, "row")
        self._count(result, len(rows), started_ns)
        return self.info.rows.probabilities(result.outputs[self.info.settings.label_output]), result.compute_ns

    async def close(self) -> None:
        """Waits until all accepted requests have their results, then ends the instances."""
        await self._batcher.close()

    async def _run_images(
        self,
        images: Sequence[ImageSource],
        share: Share,
        deadline_ns: int | None,
        priority: int = 0,
        timeout_us: int = 0,
        *,
        alone: bool = True,
    ) -> tuple[ImageRows, BatchResult | None, int]:
        """Returns the images' rows, the result of those that could be read, and the time to read all in ns.

        The result is None if no image could be read or, without `alone`, if one could not.
        """
        preprocessor = self._images_reader()
        started_ns = time.monotonic_ns()
        self.check_count(len(images), "images")
        with self.statistics.counting_failure(started_ns), self._batcher.reserve(len(images), priority) as permit:
            work = ImageRows(preprocessor, images, deadline_ns, self._times)
            self._batcher.check_time(permit, deadline_ns, round(work.least_ns(share.threads)))
            await work.read(share)
            preprocess_ns = time.monotonic_ns() - started_ns
            rows = work.good_rows()
            if not len(rows) or (work.errors and not alone):
                return work, None, preprocess_ns
            permit.shrink(len(rows))
            result = await self._batcher.submit(rows, permit, deadline_ns, timeout_us)
            if not alone:
                _check_rows(result, "image")
        self._count(result, len(rows), started_ns, preprocess_ns)
        return work, result, preprocess_ns

    def _images_reader(self) -> Preprocessor:
        if self._preprocessor is None:
            raise Unsupported(
                f"model '{self.info.name}' takes no images, because it has no manifest that says how an image becomes "
                "its input; send tensors with ModelInfer, set cnnserve.image in config.pbtxt, or export the model with "
                "cnnserve"
            )
        return self._preprocessor

    def _check_has_classes(self) -> None:
        if refusal := self.info.rows.refusal:
            raise Unsupported(f"model '{self.info.name}' has no classes for Classify: {refusal}; or use ModelInfer")

    def _count(self, result: BatchResult, images: int, started_ns: int, preprocess_ns: int | None = None) -> None:
        self.statistics.answered(
            images,
            total_ns=time.monotonic_ns() - started_ns,
            queue_ns=result.queue_ns,
            preprocess_ns=preprocess_ns,
            steps_ns=(result.input_ns, result.compute_ns - result.input_ns, result.output_ns),
        )

    async def _classes(self, rows: Rows, k: int, share: Share) -> list[list[Class]]:
        select = partial(self._select_classes, rows, k)
        count = len(rows) * min(k or self._default_k, self.info.class_count)
        if rows.size > _INLINE_VALUES or count > INLINE_CLASSES:
            return await share.run(select, rows.size * _NS_PER_VALUE + count * _NS_PER_CLASS)
        return select()

    def _select_classes(self, rows: Rows, k: int) -> list[list[Class]]:
        order, values = self._select(rows, k)
        pairs = zip(order.tolist(), values.tolist(), strict=True)
        classes = [list(map(self._class, indices, probabilities)) for indices, probabilities in pairs]
        if k or not self.info.rows.independent:
            return classes
        # An image may have several classes or none; the most probable one is always told.
        return [[row[0], *(item for item in row[1:] if item.probability >= class_rows.THRESHOLD)] for row in classes]

    @property
    def _default_k(self) -> int:
        """The number of classes from which those of an image are chosen, if the request asks for no number."""
        if not self.info.rows.independent:
            return classification.DEFAULT_TOP_K
        return max(classification.DEFAULT_TOP_K, MAX_CLASSES // self.info.settings.max_batch_size)

    def _select(self, rows: Rows, k: int) -> tuple[NDArray[np.intp], Rows]:
        """Returns the indices and probabilities of the most probable classes of each row."""
        scores = self.info.rows.probabilities(rows)
        order = classification.top_k(scores, k or self._default_k)
        return order, np.take_along_axis(scores, order, axis=-1)

    def _in_wire_shape(self, result: BatchResult) -> BatchResult:
        if not self._reshapes:
            return result
        return replace(result, outputs=[self._to_wire(*pair) for pair in enumerate(result.outputs)])

    def _to_wire(self, index: int, output: Rows) -> Rows:
        """Returns an output in the shape that the config declares."""
        settings = self.info.settings
        tensor = settings.outputs[index]
        if not tensor.reshaped:
            return output
        return output.reshape(*([len(output)] if settings.batched else []), *tensor.dims)

    def _class(self, index: int, probability: float) -> Class:
        labels = self.info.labels
        return Class(index, labels[index] if index < len(labels) else "", probability)

    def refuse_late(self, seconds: float) -> None:
        """Refuses the requests in the queue that will probably not be answered within `seconds`."""
        self._batcher.refuse_late(seconds)

    def give_up(self, reason: str) -> None:
        """Refuses all requests, also those that were accepted, and ends all runs. See `DynamicBatcher.give_up`."""
        self._batcher.give_up(reason)

    def _check_values(self, tensor: Rows) -> None:
        if not is_finite(tensor):
            raise InvalidInput(
                f"input '{self.info.settings.input.name}' has values that are NaN or infinite; send finite values"
            )

    def check_count(self, count: int, what: str) -> None:
        """Raises `InvalidInput` unless one request may have `count` images or rows (`what`)."""
        limit = self.info.settings.max_batch_size
        if count < 1:
            raise InvalidInput(f"the request has no {what}; send 1 to {limit}")
        if count > limit:
            raise InvalidInput(
                f"the request has {count} {what}, model '{self.info.name}' takes at most {limit}; send several requests"
            )

    def _check_classes(self, images: int, top_k: int) -> None:
        classes = min(top_k or classification.DEFAULT_TOP_K, self.info.class_count)
        if images * classes > MAX_CLASSES:
            raise InvalidInput(
                f"the request asks for {classes} classes of each of {images} images, the limit of a response is "
                f"{MAX_CLASSES} classes; lower top_k, send fewer images, or get all values with ModelInfer"
            )

    def check_input(self, datatype: str, shape: Sequence[int]) -> None:
        """Raises `InvalidInput` unless one request may have a tensor of this type and wire shape."""
        settings = self.info.settings
        spec = settings.input
        if datatype != spec.datatype:
            raise InvalidInput(f"input '{spec.name}' has type {datatype}, expected {spec.datatype}")
        dims = shape[1:] if settings.batched else shape
        if len(dims) != len(spec.dims) or any(want not in (-1, got) for got, want in zip(dims, spec.dims, strict=True)):
            wanted = [*([-1] if settings.batched else []), *spec.dims]
            raise InvalidInput(f"input '{spec.name}' has shape {list(shape)}, expected {wanted}")
        if 0 in dims:
            raise InvalidInput(f"input '{spec.name}' has shape {list(shape)}, expected sizes of 1 or more")
        reshape = settings.input_reshape
        # Without a batch dimension, the shape in the ONNX file determines the number of rows.
        rows = shape[0] if reshape is None or settings.batched else math.prod(shape) // math.prod(reshape)
        self.check_count(rows, "rows")


def _check_rows(result: BatchResult, what: str) -> None:
    """Raises `BadAnswer` if one of a request's rows is bad."""
    if result.bad_rows:
        raise _bad_answer(result, what)


def _bad_answer(result: BatchResult, what: str) -> BadAnswer:
    row = min(result.bad_rows)
    return _bad_row(f"{what} {row} of {len(result.outputs[0])}", result.bad_rows[row])


def _bad_row(which: str, why: str) -> BadAnswer:
    return BadAnswer(f"the model's answer to {which} is not sent, because {why}; check the input and the model")
