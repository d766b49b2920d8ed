"""Builds the request of each call and reads its response. `Client` and `AsyncClient` both send these calls."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from google.protobuf.wrappers_pb2 import Int32Value, StringValue

from cnnserve.wire import classifier_pb2 as pb

from . import images as image_input
from . import open_inference
from .arguments import text, whole
from .errors import CnnserveError, InternalError, InvalidInputError, QueueFullError, from_status
from .results import Class, Classification, ImageResult, Inference, ModelInfo, TensorInfo, Timings, VersionInfo
from .rpc import CLASSIFY, GET_MODEL, HEALTH, INFER, LIST_MODELS, LOAD_MODEL, UNLOAD_MODEL, Method

Result = TypeVar("Result")

_CODE_NAMES: dict[int, str] = {code.value[0]: code.name for code in grpc.StatusCode}
_SERVING = 1  # grpc.health.v1.HealthCheckResponse.ServingStatus.SERVING


@dataclass(frozen=True)
class Call(Generic[Result]):
    """A request that is ready to send, and the function that reads its response.

    `about` names the call in errors for which the server gave no text.
    """

    method: Method
    about: str
    request: Message
    read: Callable[[Any], Result]

    def result(self, data: bytes) -> Result:
        """Returns the result that a response contains. Raises `InternalError` if the response cannot be decoded."""
        # Not decoded by grpc: grpc.aio returns None for a response that it cannot decode.
        try:
            message = self.method.response.FromString(data)
        except DecodeError as error:
            raise InternalError(
                f"{self.about}: the response is no valid {self.method.response.__name__}: check that the server is "
                "cnnserve, in a version that fits this client"
            ) from error
        return self.read(message)


def classify(
    images: image_input.Image | Sequence[image_input.Image], limit: int, *, model: str, version: str, top_k: int
) -> Call[Classification]:
    """Returns the call that classifies one or many images. Reads the images that are files.

    Raises `InvalidInputError` if an argument is wrong, a file cannot be read, or an image has more than `limit` bytes.
    """
    request = empty_request(model=model, version=version, top_k=top_k)
    for name, image in image_input.each(images):
        image_input.fill(request.images.add(), image, name, limit)
    if not request.images:
        raise InvalidInputError("images is empty: expected at least one image")
    return Call(CLASSIFY, f"model {model!r}", request, partial(_classification, images=len(request.images)))


def infer(
    tensors: Mapping[str, Any], outputs: Sequence[str], limit: int, *, model: str, version: str
) -> Call[Inference]:
    """Returns the call that runs a model on tensors.

    Raises `InvalidInputError` if an argument is wrong, or the request has more than `limit` bytes.
    """
    request = open_inference.request(tensors, outputs, limit, model=model, version=version)
    return Call(INFER, f"model {model!r}", request, open_inference.result)


def empty_request(*, model: str, version: str, top_k: int) -> pb.ClassifyRequest:
    """Returns a request without images. Raises `InvalidInputError` if an argument is wrong."""
    return pb.ClassifyRequest(
        model=text("model", model, "the model's name"),
        version=text("version", version, "a version's number or label, or empty"),
        top_k=whole("top_k", top_k, 0, 2**32 - 1, "a number of classes, or 0 for the default of 5"),
    )


def list_models() -> Call[tuple[ModelInfo, ...]]:
    """Returns the call that lists all models without their labels."""
    return Call(LIST_MODELS, "list of models", pb.ListModelsRequest(), _models)


def get_model(name: str) -> Call[ModelInfo]:
    """Returns the call that describes one model, with labels and limits."""
    return Call(
        GET_MODEL, f"model {name!r}", pb.GetModelRequest(model=text("name", name, "the model's name")), _one_model
    )


def load_model(name: str) -> Call[ModelInfo]:
    """Returns the call that loads a model, or loads the versions again whose files changed."""
    return Call(
        LOAD_MODEL,
        f"load of model {name!r}",
        pb.LoadModelRequest(model=text("name", name, "the model's name")),
        _changed_model,
    )


def unload_model(name: str) -> Call[ModelInfo]:
    """Returns the call that unloads a model."""
    request = pb.UnloadModelRequest(model=text("name", name, "the model's name"))
    return Call(UNLOAD_MODEL, f"unload of model {name!r}", request, _changed_model)


def is_healthy(service: str) -> Call[bool]:
    """Returns the call that checks the health of a model, or of the whole server if `service` is empty."""
    return Call(
        HEALTH,
        f"health of model {service!r}" if service else "health of the server",
        StringValue(value=text("service", service, "a model's name, or empty for the server")),
        _serving,
    )


def _classification(response: pb.ClassifyResponse, *, images: int) -> Classification:
    if len(response.results) != images:
        raise InternalError(f"the server returned {len(response.results)} results for {images} images")
    timings = response.timings
    return Classification(
        model=response.model,
        version=response.version,
        results=image_results(response),
        timings=Timings(timings.queue_us, timings.preprocess_us, timings.compute_us, timings.total_us),
    )


def image_results(response: pb.ClassifyResponse) -> tuple[ImageResult, ...]:
    """Returns the classes or the error of each image."""
    return tuple([_image_result(result, response.version) for result in response.results])


def _image_result(result: pb.ImageResult, version: str) -> ImageResult:
    if classes := result.classes:
        return ImageResult(tuple([Class(c.index, c.label, c.probability) for c in classes]), version=version)
    if result.HasField("error"):
        return ImageResult(error=error_of(result.error), version=version)
    return ImageResult(error=InternalError("the server returned neither classes nor an error for this image"))


def error_of(error: pb.Error) -> CnnserveError:
    """Returns the exception for an error inside a response."""
    code = _CODE_NAMES.get(error.code, "UNKNOWN")
    if code == "RESOURCE_EXHAUSTED" and error.HasField("retry_after_ms"):
        return QueueFullError(error.message, retry_after_s=error.retry_after_ms / 1000)
    return from_status(code, error.message)


def _models(response: pb.ListModelsResponse) -> tuple[ModelInfo, ...]:
    return tuple(_model(model) for model in response.models)


def _one_model(response: pb.GetModelResponse) -> ModelInfo:
    return _model(response.model, response.max_message_bytes or None)


def _changed_model(response: pb.LoadModelResponse | pb.UnloadModelResponse) -> ModelInfo:
    return _model(response.model)


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
        contract=version.contract,
        version_labels=tuple(version.version_labels),
    )


def _state(state: pb.ModelState) -> str:
    if state not in pb.ModelState.values():  # a newer server may have states that this client does not know
        return f"STATE_{state}"
    return pb.ModelState.Name(state).removeprefix("MODEL_STATE_")


def _tensor(spec: pb.TensorSpec) -> TensorInfo:
    return TensorInfo(spec.name, spec.datatype, tuple(spec.shape))


def _serving(response: Int32Value) -> bool:
    return response.value == _SERVING
