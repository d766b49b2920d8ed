"""Handlers of the Open Inference Protocol: inference, readiness and metadata."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any

import cnnserve
from cnnserve.access.scopes import Scope
from cnnserve.api import answer_size, status, streams
from cnnserve.api.known_requests import KnownRequests
from cnnserve.api.methods import INFERENCE, CallContext, Kind, Method
from cnnserve.api.model_infer import Inference
from cnnserve.api.observing import Observer
from cnnserve.api.parameters import FINAL_RESPONSE, flag
from cnnserve.model_config.settings import WireTensor
from cnnserve.registry.registry import Registry
from cnnserve.wire import open_inference_pb2 as pb

_PLATFORM = "onnxruntime_onnx"
# If a stream's metadata has this key with the value "true", an error ends the stream with the error's status.
STREAM_ERRORS = "triton_grpc_error"
_FINAL = "triton_final_response"
# Only extensions that this server has. Triton does not have the last one: images in a BYTES tensor.
_BEFORE = ("classification",)
_AFTER = ("schedule_policy", "binary_tensor_data", "encoded_images")
_STREAM = f"{INFERENCE}/ModelStreamInfer"


class InferenceService:
    """Handlers of the six RPCs of the Open Inference Protocol, and of Triton's ModelStreamInfer.

    `is_ready` returns the readiness of the whole server. `extensions`: the extensions that other services add to the
    metadata. `triton_status`: full queues and timeouts have the status UNAVAILABLE.
    """

    def __init__(
        self,
        registry: Registry,
        inference: Inference,
        is_ready: Callable[[], bool],
        extensions: Sequence[str] = (),
        *,
        triton_status: bool = False,
        observer: Observer | None = None,
    ) -> None:
        self._registry = registry
        self._inference = inference
        self._known = KnownRequests(registry, inference)
        self._is_ready = is_ready
        self._extensions = (*_BEFORE, *extensions, *_AFTER)
        self._statuses = status.TRITON_STATUS if triton_status else status.STATUS
        self._draining = asyncio.Event()
        # On a stream, each message is a request.
        self._streamed: Any = (observer or Observer()).unary(_STREAM, self.model_infer, self._statuses)

    def methods(self) -> list[Method]:
        """Returns the service's rows of the method table."""
        return [
            Method(
                f"{INFERENCE}/ServerLive",
                pb.ServerLiveRequest,
                pb.ServerLiveResponse,
                self.server_live,
                Scope.OPEN,
                while_draining=True,
            ),
            Method(
                f"{INFERENCE}/ServerReady",
                pb.ServerReadyRequest,
                pb.ServerReadyResponse,
                self.server_ready,
                Scope.OPEN,
                while_draining=True,
            ),
            Method(
                f"{INFERENCE}/ModelReady", pb.ModelReadyRequest, pb.ModelReadyResponse, self.model_ready, Scope.OPEN
            ),
            Method(
                f"{INFERENCE}/ServerMetadata",
                pb.ServerMetadataRequest,
                pb.ServerMetadataResponse,
                self.server_metadata,
                Scope.READ,
            ),
            Method(
                f"{INFERENCE}/ModelMetadata",
                pb.ModelMetadataRequest,
                pb.ModelMetadataResponse,
                self.model_metadata,
                Scope.READ,
            ),
            Method(
                f"{INFERENCE}/ModelInfer",
                pb.ModelInferRequest,
                pb.ModelInferResponse,
                self.model_infer,
                Scope.INFER,
                statuses=self._statuses,
                quick=self._known.answer,
            ),
            Method(
                _STREAM,
                pb.ModelInferRequest,
                pb.ModelStreamInferResponse,
                self.model_stream_infer,
                Scope.INFER,
                Kind.STREAM,
                statuses=self._statuses,
            ),
        ]

    def drain(self) -> None:
        """Makes every stream stop reading: it returns the responses to the requests it has read, then it ends."""
        self._draining.set()

    async def server_live(self, _: pb.ServerLiveRequest, __: CallContext) -> pb.ServerLiveResponse:
        """Returns that the server is live: a server that responds is live."""
        return pb.ServerLiveResponse(live=True)

    async def server_ready(self, _: pb.ServerReadyRequest, __: CallContext) -> pb.ServerReadyResponse:
        """Returns whether the server as a whole is ready."""
        return pb.ServerReadyResponse(ready=self._is_ready())

    async def model_ready(self, request: pb.ModelReadyRequest, _: CallContext) -> pb.ModelReadyResponse:
        """Returns whether a version is READY. Raises as `Registry.is_ready`."""
        return pb.ModelReadyResponse(ready=self._registry.is_ready(request.name, request.version))

    async def server_metadata(self, _: pb.ServerMetadataRequest, __: CallContext) -> pb.ServerMetadataResponse:
        """Returns the server's name, version and extensions."""
        return pb.ServerMetadataResponse(name="cnnserve", version=cnnserve.__version__, extensions=self._extensions)

    async def model_metadata(self, request: pb.ModelMetadataRequest, _: CallContext) -> pb.ModelMetadataResponse:
        """Returns the READY versions, the input and the outputs of a model. Raises as `Registry.get`."""
        model = self._registry.get(request.name, request.version)
        settings = model.info.settings
        return pb.ModelMetadataResponse(
            name=request.name,
            versions=[str(entry.version) for entry in self._registry.entry(request.name).ready],
            platform=_PLATFORM,
            inputs=[_metadata(settings.input, batched=settings.batched)],
            outputs=[_metadata(output, batched=settings.batched) for output in settings.outputs],
        )

    async def model_infer(self, request: pb.ModelInferRequest, context: CallContext) -> pb.ModelInferResponse:
        """Runs a tensor, or the images of a BYTES tensor, through a model. Raises `ServingError`s."""
        model = self._registry.get(request.model_name, request.model_version)
        return await self._inference.run(request, model, context)

    def model_stream_infer(
        self, requests: AsyncIterator[pb.ModelInferRequest], context: CallContext
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        """Yields the response to each request, in their order; `streams.STREAM_LIMIT` requests may be in flight."""
        return streams.answers(requests, partial(self._answer, context), self._draining, in_order=True)

    async def _answer(self, context: CallContext, request: pb.ModelInferRequest) -> pb.ModelStreamInferResponse:
        answer = pb.ModelStreamInferResponse()
        try:
            final = flag(request.parameters, FINAL_RESPONSE)
            answer.infer_response.CopyFrom(await self._streamed(request, context))
            if final:
                answer.infer_response.parameters[_FINAL].bool_param = True
        except Exception as error:
            if context.metadata.get(STREAM_ERRORS) == "true":
                raise
            answer.error_message = status.of(error, _STREAM, self._statuses).message
            answer.infer_response.model_name = request.model_name[: answer_size.ECHOED]
            answer.infer_response.id = request.id[: answer_size.ECHOED]
        return answer


def _metadata(tensor: WireTensor, *, batched: bool) -> pb.ModelMetadataResponse.TensorMetadata:
    return pb.ModelMetadataResponse.TensorMetadata(
        name=tensor.name, datatype=tensor.datatype, shape=[*([-1] if batched else []), *tensor.dims]
    )
