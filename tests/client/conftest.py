"""A scripted peer: a real gRPC server on a real port that answers what a test tells it to."""

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2_grpc

from cnnserve.wire import classifier_pb2 as pb
from cnnserve_client import AsyncClient, Client

Script = Callable[[Any, grpc.ServicerContext], Any]

REQUESTS = {
    "/cnnserve.v1.Classifier/Classify": pb.ClassifyRequest,
    "/cnnserve.v1.Classifier/ListModels": pb.ListModelsRequest,
    "/cnnserve.v1.Classifier/GetModel": pb.GetModelRequest,
    "/cnnserve.v1.Classifier/LoadModel": pb.LoadModelRequest,
    "/cnnserve.v1.Classifier/UnloadModel": pb.UnloadModelRequest,
}


def one_class_each(request: pb.ClassifyRequest, context: grpc.ServicerContext) -> pb.ClassifyResponse:
    """Every image is a seven, but one whose bytes start with "bad" cannot be decoded."""
    answer = pb.ClassifyResponse(model=request.model, version="1", timings=pb.Timings(queue_us=1, total_us=9))
    for image in request.images:
        if image.encoded.startswith(b"bad"):
            answer.results.add().error.MergeFrom(pb.Error(code=3, message="cannot decode the image"))
        else:
            answer.results.add().classes.add(index=7, label="seven", probability=0.75)
    return answer


def small_model(request: pb.GetModelRequest, context: grpc.ServicerContext) -> pb.GetModelResponse:
    version = pb.ModelVersion(version="1", state=pb.MODEL_STATE_READY, max_batch_size=3, class_count=10)
    return pb.GetModelResponse(model=pb.Model(name=request.model, versions=[version]), max_message_bytes=2**26)


def loaded(request: pb.LoadModelRequest, context: grpc.ServicerContext) -> pb.LoadModelResponse:
    version = pb.ModelVersion(
        version="3", state=pb.MODEL_STATE_READY, self_test="within 1e-7", version_labels=["stable", "canary"]
    )
    return pb.LoadModelResponse(model=pb.Model(name=request.model, versions=[version]))


def unloaded(request: pb.UnloadModelRequest, context: grpc.ServicerContext) -> pb.UnloadModelResponse:
    version = pb.ModelVersion(version="3", state=pb.MODEL_STATE_UNAVAILABLE, reason="unloaded")
    return pb.UnloadModelResponse(model=pb.Model(name=request.model, versions=[version]))


def two_models(request: pb.ListModelsRequest, context: grpc.ServicerContext) -> pb.ListModelsResponse:
    ready = pb.ModelVersion(
        version="2",
        state=pb.MODEL_STATE_READY,
        input=pb.TensorSpec(name="image", datatype="UINT8", shape=[-1, 28, 28, 1]),
        class_count=10,
        max_batch_size=32,
        verified=True,
        placement={"CPUExecutionProvider": 12},
        accepts_images=True,
        architecture="lenet5",
        precision="fp32",
    )
    broken = pb.ModelVersion(version="1", state=pb.MODEL_STATE_UNAVAILABLE, reason="model.onnx was altered")
    models = [pb.Model(name="digits", versions=[ready]), pb.Model(name="photos", versions=[broken])]
    return pb.ListModelsResponse(models=models)


@dataclass(frozen=True)
class Asked:
    """One request as it arrived."""

    method: str
    message: Any
    timeout_s: float


class Peer(grpc.GenericRpcHandler):
    """`scripts` says what is answered, `asked` what came; `health` is grpcio-health-checking's own servicer."""

    def __init__(self) -> None:
        self.scripts: dict[str, Script] = {
            "Classify": one_class_each,
            "ListModels": two_models,
            "GetModel": small_model,
            "LoadModel": loaded,
            "UnloadModel": unloaded,
        }
        self.asked: list[Asked] = []
        self.health = health.HealthServicer()
        self.address = ""

    def of(self, method: str) -> list[Any]:
        """The messages that came for one method, in order."""
        return [asked.message for asked in self.asked if asked.method == method]

    def refuse(self, method: str, code: grpc.StatusCode, text: str, trailers: tuple[tuple[str, str], ...] = ()) -> None:
        """Answer this method with a status."""

        def script(request: Any, context: grpc.ServicerContext) -> None:
            context.set_trailing_metadata(trailers)
            context.abort(code, text)

        self.scripts[method] = script

    def hang(self, method: str) -> None:
        """Do not answer while the caller waits."""

        def script(request: Any, context: grpc.ServicerContext) -> None:
            while context.is_active():
                time.sleep(0.01)

        self.scripts[method] = script

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        if details.method not in REQUESTS:
            return None
        method = details.method.rpartition("/")[2]

        def answer(request: Any, context: grpc.ServicerContext) -> Any:
            self.asked.append(Asked(method, request, context.time_remaining()))
            return self.scripts[method](request, context)

        return grpc.unary_unary_rpc_method_handler(
            answer,
            request_deserializer=REQUESTS[details.method].FromString,
            response_serializer=lambda message: message if isinstance(message, bytes) else message.SerializeToString(),
        )


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer()
    with ThreadPoolExecutor(4) as pool:
        # Above the clients' default limit, so that it is theirs that a test meets.
        server = grpc.server(pool, handlers=[peer], options=[("grpc.max_receive_message_length", 2**27)])
        health_pb2_grpc.add_HealthServicer_to_server(peer.health, server)
        peer.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        yield peer
        server.stop(None).wait()


Ask = Callable[..., Any]


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """`ask(address, method, ...)` through a fresh client of either kind: what one promises, both keep."""

    def sync(address: str, method: str, *args: Any, limits: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        with Client(address, **limits or {}) as client:
            return getattr(client, method)(*args, **kwargs)

    def through_asyncio(address: str, method: str, *args: Any, limits: dict[str, Any] | None = None, **kwargs: Any):
        async def call() -> Any:
            async with AsyncClient(address, **limits or {}) as client:
                return await getattr(client, method)(*args, **kwargs)

        return asyncio.run(call())

    return sync if request.param == "sync" else through_asyncio
