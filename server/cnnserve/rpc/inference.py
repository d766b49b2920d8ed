"""Open Inference Protocol handlers: protobuf <-> plain values."""

from collections.abc import Callable, Sequence

import cnnserve
from cnnserve.admission import MemoryBudget
from cnnserve.errors import InvalidInput
from cnnserve.model import Model
from cnnserve.model_config import WireTensor
from cnnserve.registry import Registry
from cnnserve.rpc import tensors
from cnnserve.rpc.methods import CallContext, Method
from cnnserve.wire import open_inference_pb2 as pb

_SERVICE = "inference.GRPCInferenceService"
_PLATFORM = "onnxruntime_onnx"
# Only what is there.
_EXTENSIONS = ("binary_tensor_data",)


class InferenceService:
    """`inference.GRPCInferenceService`: the core six. `is_ready` is the server's own readiness.

    `extensions`: what other services add to those named in the metadata.
    """

    def __init__(
        self, registry: Registry, budget: MemoryBudget, is_ready: Callable[[], bool], extensions: Sequence[str] = ()
    ) -> None:
        self._registry = registry
        self._budget = budget
        self._is_ready = is_ready
        self._extensions = (*extensions, *_EXTENSIONS)

    def methods(self) -> list[Method]:
        """The service's rows of the method table."""
        return [
            Method(
                f"{_SERVICE}/ServerLive",
                pb.ServerLiveRequest,
                pb.ServerLiveResponse,
                self.server_live,
                while_draining=True,
            ),
            Method(
                f"{_SERVICE}/ServerReady",
                pb.ServerReadyRequest,
                pb.ServerReadyResponse,
                self.server_ready,
                while_draining=True,
            ),
            Method(f"{_SERVICE}/ModelReady", pb.ModelReadyRequest, pb.ModelReadyResponse, self.model_ready),
            Method(
                f"{_SERVICE}/ServerMetadata", pb.ServerMetadataRequest, pb.ServerMetadataResponse, self.server_metadata
            ),
            Method(f"{_SERVICE}/ModelMetadata", pb.ModelMetadataRequest, pb.ModelMetadataResponse, self.model_metadata),
            Method(f"{_SERVICE}/ModelInfer", pb.ModelInferRequest, pb.ModelInferResponse, self.model_infer),
        ]

    async def server_live(self, _: pb.ServerLiveRequest, __: CallContext) -> pb.ServerLiveResponse:
        """It answers, so it lives."""
        return pb.ServerLiveResponse(live=True)

    async def server_ready(self, _: pb.ServerReadyRequest, __: CallContext) -> pb.ServerReadyResponse:
        """Whether the server as a whole is SERVING."""
        return pb.ServerReadyResponse(ready=self._is_ready())

    async def model_ready(self, request: pb.ModelReadyRequest, _: CallContext) -> pb.ModelReadyResponse:
        """Whether a version answers. Raises `ModelNotFound` and `VersionNotFound` for what is not there."""
        return pb.ModelReadyResponse(ready=self._registry.is_ready(request.name, request.version))

    async def server_metadata(self, _: pb.ServerMetadataRequest, __: CallContext) -> pb.ServerMetadataResponse:
        """Name, version, extensions."""
        return pb.ServerMetadataResponse(name="cnnserve", version=cnnserve.__version__, extensions=self._extensions)

    async def model_metadata(self, request: pb.ModelMetadataRequest, _: CallContext) -> pb.ModelMetadataResponse:
        """Versions, inputs and outputs of a READY model."""
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
        """Runs one tensor through a model."""
        model = self._registry.get(request.model_name, request.model_version)
        settings = model.info.settings
        # Everything that is cheap to check comes before anything that costs time on the event loop.
        if len(request.inputs) != 1:
            raise InvalidInput(f"the request has {len(request.inputs)} inputs, model '{model.info.name}' takes 1")
        name = request.inputs[0].name
        if name != settings.input.name:
            raise InvalidInput(
                f"the request has input '{name}', model '{model.info.name}' takes '{settings.input.name}'"
            )
        wanted = _wanted_outputs(request, model)
        priority, timeout_us = _integer(request, "priority"), _integer(request, "timeout")
        tensor = tensors.read_input(request)
        with self._budget.hold(tensor.nbytes):
            result = await model.infer(tensor, context.deadline_ns, priority, timeout_us)
        response = pb.ModelInferResponse(
            model_name=model.info.name, model_version=str(model.info.version), id=request.id
        )
        for index in wanted:
            tensors.write_output(response, settings.outputs[index].name, result.outputs[index])
        return response


def _integer(request: pb.ModelInferRequest, name: str) -> int:
    """A request parameter that is an integer of 0 or more; 0 where it is not there."""
    if name not in request.parameters:
        return 0
    parameter = request.parameters[name]
    choice = parameter.WhichOneof("parameter_choice")
    value = getattr(parameter, choice) if choice else None
    if choice not in ("int64_param", "uint64_param") or not isinstance(value, int) or value < 0:
        raise InvalidInput(f"parameter '{name}' is {value!r} ({choice}), expected an int64_param of 0 or more")
    return value


def _wanted_outputs(request: pb.ModelInferRequest, model: Model) -> list[int]:
    names = [output.name for output in model.info.settings.outputs]
    if not request.outputs:
        return list(range(len(names)))
    for output in request.outputs:
        if output.name not in names:
            raise InvalidInput(f"the request wants output '{output.name}', the model has {', '.join(names)}")
        for parameter in output.parameters:
            # Ignoring one would answer something else than was asked for.
            raise InvalidInput(f"output '{output.name}' has parameter '{parameter}', which this server does not know")
    return [names.index(output.name) for output in request.outputs]


def _metadata(tensor: WireTensor, *, batched: bool) -> pb.ModelMetadataResponse.TensorMetadata:
    return pb.ModelMetadataResponse.TensorMetadata(
        name=tensor.name, datatype=tensor.datatype, shape=[*([-1] if batched else []), *tensor.dims]
    )
