"""Handlers of `cnnserve.v1.Classifier`: classify images and describe models."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from typing import Any

from google.protobuf.message import Message

from cnnserve.access.scopes import Scope
from cnnserve.api import answer_size, status, streams
from cnnserve.api.describe import describe
from cnnserve.api.long_labels import LongLabels
from cnnserve.api.methods import CLASSIFIER, CallContext, Kind, Method
from cnnserve.api.observing import Observer
from cnnserve.errors import DeadlineExceeded, InvalidInput, ServingError
from cnnserve.images.preprocessing import ImageSource, RawImage
from cnnserve.model import version as models
from cnnserve.process.admission import MemoryBudget
from cnnserve.process.threads import on_thread
from cnnserve.registry.registry import Registry
from cnnserve.wire import classifier_pb2 as pb


class ClassifierService:
    """Handlers of Classify, ClassifyStream, ListModels and GetModel."""

    def __init__(
        self, registry: Registry, budget: MemoryBudget, max_message_bytes: int, observer: Observer | None = None
    ) -> None:
        # On a stream, each message is a request.
        self._streamed: Any = (observer or Observer()).unary(f"{CLASSIFIER}/ClassifyStream", self.classify)
        self._registry = registry
        self._budget = budget
        self._max_message_bytes = max_message_bytes
        self._labels = LongLabels()
        self._draining = asyncio.Event()

    def methods(self) -> list[Method]:
        """Returns the service's rows of the method table."""
        return [
            Method(f"{CLASSIFIER}/Classify", pb.ClassifyRequest, pb.ClassifyResponse, self.classify, Scope.INFER),
            Method(
                f"{CLASSIFIER}/ClassifyStream",
                pb.ClassifyStreamRequest,
                pb.ClassifyStreamResponse,
                self.classify_stream,
                Scope.INFER,
                Kind.STREAM,
            ),
            Method(
                f"{CLASSIFIER}/ListModels", pb.ListModelsRequest, pb.ListModelsResponse, self.list_models, Scope.READ
            ),
            Method(f"{CLASSIFIER}/GetModel", pb.GetModelRequest, pb.GetModelResponse, self.get_model, Scope.READ),
        ]

    def drain(self) -> None:
        """Makes every stream stop reading: it returns the responses to the requests it has read, then it ends."""
        self._draining.set()

    async def classify(self, request: pb.ClassifyRequest, context: CallContext) -> pb.ClassifyResponse:
        """Returns the most probable classes of each image. Raises `ServingError`s."""
        started = time.monotonic_ns()
        model = self._registry.get(request.model, request.version)
        # A message may hold millions of images, so the count is checked before each image becomes an object.
        model.check_count(len(request.images), "images")
        images = [_image(image, index) for index, image in enumerate(request.images)]
        record = context.record
        if record is not None:
            record.model, record.version, record.images = model.info.name, str(model.info.version), len(images)
        size = sum(map(_size, images)) + len(images) * model.row_bytes
        with context.images(len(images)), self._budget.hold(size):
            result = await model.classify(images, request.top_k, context.deadline_ns, context.client)
        response = pb.ClassifyResponse(model=model.info.name, version=str(model.info.version))
        add = partial(_add_results, response, result.outcomes)
        if sum(len(outcome) for outcome in result.outcomes if isinstance(outcome, list)) > models.INLINE_CLASSES:
            await on_thread(add, "response")
        else:
            add()
        self._check_size(response)
        timings = result.timings
        if record is not None:
            record.queue_ns, record.preprocess_ns, record.compute_ns = (
                timings.queue,
                timings.preprocess,
                timings.compute,
            )
            record.run_ns, record.batch_size = timings.run_started, timings.batch_size
        response.timings.queue_us = timings.queue // 1000
        response.timings.preprocess_us = timings.preprocess // 1000
        response.timings.compute_us = timings.compute // 1000
        response.timings.total_us = (time.monotonic_ns() - started) // 1000
        return response

    def classify_stream(
        self, requests: AsyncIterator[pb.ClassifyStreamRequest], context: CallContext
    ) -> AsyncIterator[pb.ClassifyStreamResponse]:
        """Yields the response to each request as soon as it is complete; `streams.STREAM_LIMIT` may be in flight."""
        return streams.answers(requests, partial(self._answer, context), self._draining, in_order=False)

    async def list_models(self, _: pb.ListModelsRequest, __: CallContext) -> pb.ListModelsResponse:
        """Returns every model, without labels."""
        return pb.ListModelsResponse(models=[describe(entry, labels=False) for entry in self._registry.models])

    async def get_model(self, request: pb.GetModelRequest, _: CallContext) -> pb.GetModelResponse | bytes:
        """Returns one model with its labels, and the largest message in bytes. Raises as `Registry.entry`."""
        entry = self._registry.entry(request.model)
        await self._labels.prepare(entry)
        response = pb.GetModelResponse(max_message_bytes=self._max_message_bytes)
        if not self._labels.has_many(entry):
            response.model.MergeFrom(describe(entry, labels=True))
            return response
        return response.SerializeToString() + self._labels.model_field(entry)

    def _check_size(self, answer: Message) -> None:
        answer_size.check(answer.ByteSize(), self._max_message_bytes, "ask for a smaller top_k, send fewer images")

    async def _answer(self, context: CallContext, request: pb.ClassifyStreamRequest) -> pb.ClassifyStreamResponse:
        answer = pb.ClassifyStreamResponse(id=request.id)
        deadline_ns = context.deadline_ns
        if request.timeout_us:
            own_ns = time.monotonic_ns() + request.timeout_us * 1000
            deadline_ns = own_ns if deadline_ns is None else min(own_ns, deadline_ns)
        try:
            async with _until_ns(deadline_ns):
                own = replace(context, deadline_ns=deadline_ns, request_id=request.id or context.request_id)
                answer.response.CopyFrom(await self._streamed(request.request, own))
            self._check_size(answer)
        except Exception as error:
            told = status.of(error, f"{CLASSIFIER}/ClassifyStream")
            answer.id = request.id[: answer_size.ECHOED]
            answer.error.code, answer.error.message = told.code, told.message
            if told.retry_after_ms is not None:
                answer.error.retry_after_ms = told.retry_after_ms
        return answer


@contextlib.asynccontextmanager
async def _until_ns(deadline_ns: int | None) -> AsyncIterator[None]:
    """Cancels the block at `deadline_ns` (monotonic clock, None: never) and raises `DeadlineExceeded`."""
    delay_s = None if deadline_ns is None else (deadline_ns - time.monotonic_ns()) / 1e9
    try:
        async with asyncio.timeout(delay_s):
            yield
    except TimeoutError as error:
        raise DeadlineExceeded("the deadline passed before the response was complete; allow more time") from error


def _image(image: pb.Image, index: int) -> ImageSource:
    content = image.WhichOneof("content")
    if content == "encoded":
        return image.encoded
    if content == "raw":
        raw = image.raw
        return RawImage(raw.data, raw.height, raw.width, raw.channels)
    raise InvalidInput(f"image {index} has no content; set encoded or raw")


def _size(image: ImageSource) -> int:
    return len(image) if isinstance(image, bytes) else len(image.data)


def _add_results(response: pb.ClassifyResponse, outcomes: list[list[models.Class] | ServingError]) -> None:
    for outcome in outcomes:
        _add_result(response, outcome)


def _add_result(response: pb.ClassifyResponse, outcome: list[models.Class] | ServingError) -> None:
    result = response.results.add()
    if isinstance(outcome, ServingError):
        result.error.code = status.of(outcome, "image").code
        result.error.message = str(outcome)
        return
    for item in outcome:
        result.classes.add(index=item.index, label=item.label, probability=item.probability)
