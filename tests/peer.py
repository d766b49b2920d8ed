"""A scripted peer: a real gRPC server on a real port whose responses a test decides."""

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2_grpc

from cnnserve.wire import classifier_pb2 as pb

Script = Callable[[Any, grpc.ServicerContext], Any]

REQUESTS = {
    "/cnnserve.v1.Classifier/Classify": pb.ClassifyRequest,
    "/cnnserve.v1.Classifier/ListModels": pb.ListModelsRequest,
    "/cnnserve.v1.Classifier/GetModel": pb.GetModelRequest,
    "/cnnserve.v1.Classifier/LoadModel": pb.LoadModelRequest,
    "/cnnserve.v1.Classifier/UnloadModel": pb.UnloadModelRequest,
}


def one_class_each(request: pb.ClassifyRequest, context: grpc.ServicerContext) -> pb.ClassifyResponse:
    """Returns class seven for every image, but an error for images whose bytes begin with "bad"."""
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


class Refused(Exception):
    """A script raises this: the response to this request of a stream is an error, and the stream continues."""

    def __init__(self, code: grpc.StatusCode, text: str, retry_after_ms: int | None = None) -> None:
        super().__init__(text)
        self.error = pb.Error(code=code.value[0], message=text, retry_after_ms=retry_after_ms)


@dataclass(frozen=True)
class Asked:
    """One request that the peer received."""

    method: str
    message: Any
    timeout_s: float


class Peer(grpc.GenericRpcHandler):
    """`scripts` make the responses, `asked` has the requests. `health` is the servicer of grpcio-health-checking."""

    def __init__(self) -> None:
        self.scripts: dict[str, Script] = {
            "Classify": one_class_each,
            "ListModels": two_models,
            "GetModel": small_model,
            "LoadModel": loaded,
            "UnloadModel": unloaded,
        }
        self.asked: list[Asked] = []
        self.metadata: list[dict[str, str | bytes]] = []
        self.health = health.HealthServicer()
        self.address = ""
        self.server: grpc.Server | None = None

    def stream(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        """Yields the response to each request of a stream, from the script for Classify."""
        for request in requests:
            self.asked.append(Asked("Classify", request.request, request.timeout_us / 1e6))
            answer = pb.ClassifyStreamResponse(id=request.id)
            try:
                answer.response.CopyFrom(self.scripts["Classify"](request.request, context))
            except Refused as refused:
                answer.error.CopyFrom(refused.error)
            yield answer

    def of(self, method: str) -> list[Any]:
        """Returns the messages that one method received, in order."""
        return [asked.message for asked in self.asked if asked.method == method]

    def refuse(self, method: str, code: grpc.StatusCode, text: str, trailers: tuple[tuple[str, str], ...] = ()) -> None:
        """Makes this method end with a status."""

        def script(request: Any, context: grpc.ServicerContext) -> None:
            context.set_trailing_metadata(trailers)
            context.abort(code, text)

        self.scripts[method] = script

    def hang(self, method: str) -> None:
        """Makes this method send no response while the client waits."""

        def script(request: Any, context: grpc.ServicerContext) -> None:
            while context.is_active():
                time.sleep(0.01)

        self.scripts[method] = script

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        self.metadata.append(dict(details.invocation_metadata))
        if details.method == "/cnnserve.v1.Classifier/ClassifyStream":
            return grpc.stream_stream_rpc_method_handler(
                lambda *call: self.stream(*call),  # noqa: PLW0108 - a test may replace it meanwhile
                request_deserializer=pb.ClassifyStreamRequest.FromString,
                response_serializer=lambda message: (
                    message if isinstance(message, bytes) else message.SerializeToString()
                ),
            )
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


@contextlib.contextmanager
def running(peer: Peer, port: int = 0, credentials: grpc.ServerCredentials | None = None) -> Iterator[Peer]:
    """Yields the peer while it serves on a port of 127.0.0.1."""
    with ThreadPoolExecutor(4) as pool:
        # Above the clients' default limit, so that a test reaches the limit of the client.
        options = [("grpc.max_receive_message_length", 2**27), ("grpc.so_reuseport", 0)]
        server = grpc.server(pool, handlers=[peer], options=options)
        health_pb2_grpc.add_HealthServicer_to_server(peer.health, server)
        at = f"127.0.0.1:{port}"
        bound = server.add_secure_port(at, credentials) if credentials else server.add_insecure_port(at)
        peer.address = f"127.0.0.1:{bound}"
        server.start()
        peer.server = server
        yield peer
        server.stop(None).wait()
