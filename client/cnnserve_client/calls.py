"""What each call asks, and how its answer reads. Decided here once, sent by `Client` and `AsyncClient` alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from google.protobuf.wrappers_pb2 import Int32Value, StringValue

from cnnserve.wire import classifier_pb2 as pb

from . import images as image_input
from .arguments import text, whole
from .errors import CnnserveError, InternalError, InvalidInputError, QueueFullError, from_status
from .results import Class, Classification, ImageResult, ModelInfo, TensorInfo, Timings, VersionInfo
from .rpc import CLASSIFY, GET_MODEL, HEALTH, LIST_MODELS, LOAD_MODEL, UNLOAD_MODEL, Method

Result = TypeVar("Result")

_CODE_NAMES: dict[int, str] = {code.value[0]: code.name for code in grpc.StatusCode}
_SERVING = 1  # grpc.health.v1.HealthCheckResponse.ServingStatus


@dataclass(frozen=True)
class Call(Generic[Result]):
    """A request ready to send, and how its answer reads."""

    method: Method
    about: str
    request: Message
    read: Callable[[Any], Result]

    def result(self, answer: bytes) -> Result:
        """The answer's value. Decoded here because grpc.aio makes None of what it cannot decode."""
        try:
            message = self.method.answer.FromString(answer)
        except DecodeError as error:
            raise InternalError(f"{self.about}: the answer is no {self.method.answer.__name__}") from error
        return self.read(message)


def classify(
    images: image_input.Image | Sequence[image_input.Image], limit: int, *, model: str, version: str, top_k: int
) -> Call[Classification]:
    """One Classify request for one or many images. Reads the files among them, and none above `limit` bytes."""
    request = empty_request(model=model, version=version, top_k=top_k)
    for name, image in image_input.each(images):
        image_input.fill(request.images.add(), image, name, limit)
    if not request.images:
        raise InvalidInputError("images is empty: expected at least one image")
    return Call(CLASSIFY, f"model {model!r}", request, partial(_classification, images=len(request.images)))


def empty_request(*, model: str, version: str, top_k: int) -> pb.ClassifyRequest:
    """A request without images. Raises `InvalidInputError` for what cannot be sent."""
    return pb.ClassifyRequest(
        model=text("model", model, "the model's name"),
        version=text("version", version, "a version's number or label, or an empty one"),
        top_k=whole("top_k", top_k, 0, 2**32 - 1, "0 for the default, or a number of classes"),
    )


def list_models() -> Call[tuple[ModelInfo, ...]]:
    """All models, without labels."""
    return Call(LIST_MODELS, "list of models", pb.ListModelsRequest(), _models)


def get_model(name: str) -> Call[ModelInfo]:
    """One model in full."""
    return Call(
        GET_MODEL, f"model {name!r}", pb.GetModelRequest(model=text("name", name, "the model's name")), _one_model
    )


def load_model(name: str) -> Call[ModelInfo]:
    """Load a model, or load again what changed."""
    return Call(
        LOAD_MODEL,
        f"load of model {name!r}",
        pb.LoadModelRequest(model=text("name", name, "the model's name")),
        _changed_model,
    )


def unload_model(name: str) -> Call[ModelInfo]:
    """Unload a model."""
    request = pb.UnloadModelRequest(model=text("name", name, "the model's name"))
    return Call(UNLOAD_MODEL, f"unload of model {name!r}", request, _changed_model)


def is_healthy(service: str) -> Call[bool]:
    """One health check; an empty service means the whole server."""
    return Call(
        HEALTH,
        f"health of {service!r}",
        StringValue(value=text("service", service, "a model's name, or an empty one for the server")),
        _serving,
    )


def _classification(answer: pb.ClassifyResponse, *, images: int) -> Classification:
    if len(answer.results) != images:
        raise InternalError(f"the server answered {len(answer.results)} results for {images} images")
    timings = answer.timings
    return Classification(
        model=answer.model,
        version=answer.version,
        results=image_results(answer),
        timings=Timings(timings.queue_us, timings.preprocess_us, timings.compute_us, timings.total_us),
    )


def image_results(answer: pb.ClassifyResponse) -> tuple[ImageResult, ...]:
    """Each image's classes or error."""
    return tuple([_image_result(result, answer.version) for result in answer.results])


def _image_result(result: pb.ImageResult, version: str) -> ImageResult:
    if classes := result.classes:
        return ImageResult(tuple([Class(c.index, c.label, c.probability) for c in classes]), version=version)
    if result.HasField("error"):
        return ImageResult(error=error_of(result.error), version=version)
    return ImageResult(error=InternalError("the server answered neither classes nor an error for this image"))


def error_of(error: pb.Error) -> CnnserveError:
    """The exception for an error that came inside an answer."""
    code = _CODE_NAMES.get(error.code, "UNKNOWN")
    if code == "RESOURCE_EXHAUSTED" and error.HasField("retry_after_ms"):
        return QueueFullError(error.message, retry_after_s=error.retry_after_ms / 1000)
    return from_status(code, error.message)


def _models(answer: pb.ListModelsResponse) -> tuple[ModelInfo, ...]:
    return tuple(_model(model) for model in answer.models)


def _one_model(answer: pb.GetModelResponse) -> ModelInfo:
    return _model(answer.model, answer.max_message_bytes or None)


def _changed_model(answer: pb.LoadModelResponse | pb.UnloadModelResponse) -> ModelInfo:
    return _model(answer.model)


def _model(model: pb.Model, max_message_bytes: int | None = None) -> ModelInfo:
    return ModelInfo(model.name, tuple(map(_version, model.versions)), model.reason, max_message_bytes)


def _version(version: pb.ModelVersion) -> VersionInfo:
    return VersionInfo(
        version=version.version,
        state=_state(version.state),
        reason=version.reason,
        input=_tensor(version.input) if version.HasField("input") else None,
        class_count=version.class_count,
        labels=tuple(version.labels),
        max_batch_size=version.max_batch_size,
        verified=version.verified,
        placement=dict(version.placement),
        accepts_images=version.accepts_images,
        architecture=version.architecture,
        precision=version.precision,
        self_test=version.self_test,
        version_labels=tuple(version.version_labels),
    )


def _state(state: pb.ModelState) -> str:
    if state not in pb.ModelState.values():  # a state that a newer server has
        return f"STATE_{state}"
    return pb.ModelState.Name(state).removeprefix("MODEL_STATE_")


def _tensor(spec: pb.TensorSpec) -> TensorInfo:
    return TensorInfo(spec.name, spec.datatype, tuple(spec.shape))


def _serving(answer: Int32Value) -> bool:
    return answer.value == _SERVING
