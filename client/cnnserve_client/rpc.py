"""The method table: each RPC's full name and message classes, for the blocking and the asyncio channel alike.

Ten lines instead of generated service stubs, which exist twice and tie themselves to one version of grpcio.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import grpc
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import Int32Value, StringValue

from cnnserve.wire import classifier_pb2 as pb


@dataclass(frozen=True)
class Method:
    """One RPC."""

    path: str
    request: type[Message]
    answer: type[Message]
    safe: bool = True
    """It changes nothing on the server, so it may be sent twice."""
    light: bool = False
    """It takes a server no time, so one that does not answer soon is not waited for where there are others."""


CLASSIFY: Final = Method("/cnnserve.v1.Classifier/Classify", pb.ClassifyRequest, pb.ClassifyResponse)
CLASSIFY_STREAM: Final = Method(
    "/cnnserve.v1.Classifier/ClassifyStream", pb.ClassifyStreamRequest, pb.ClassifyStreamResponse
)
LIST_MODELS: Final = Method(
    "/cnnserve.v1.Classifier/ListModels", pb.ListModelsRequest, pb.ListModelsResponse, light=True
)
GET_MODEL: Final = Method("/cnnserve.v1.Classifier/GetModel", pb.GetModelRequest, pb.GetModelResponse, light=True)
LOAD_MODEL: Final = Method("/cnnserve.v1.Classifier/LoadModel", pb.LoadModelRequest, pb.LoadModelResponse, safe=False)
UNLOAD_MODEL: Final = Method(
    "/cnnserve.v1.Classifier/UnloadModel", pb.UnloadModelRequest, pb.UnloadModelResponse, safe=False
)

# protobuf refuses a second file that defines grpc.health.v1, so defining it here would break programs that also import
# grpcio-health-checking. HealthCheckRequest is one string in field 1 and HealthCheckResponse one enum in field 1, which
# are StringValue and Int32Value byte for byte.
HEALTH: Final = Method("/grpc.health.v1.Health/Check", StringValue, Int32Value, light=True)

METHODS: Final = (CLASSIFY, LIST_MODELS, GET_MODEL, LOAD_MODEL, UNLOAD_MODEL, HEALTH)


def stubs(channel: grpc.Channel | grpc.aio.Channel) -> dict[str, Callable[..., Any]]:
    """A callable per path of the method table; awaitable on an aio channel. Answers are bytes, see `calls.Call`."""
    return {method.path: channel.unary_unary(method.path, method.request.SerializeToString) for method in METHODS}


def stream(channel: grpc.Channel | grpc.aio.Channel) -> Callable[..., Any]:
    """Opens a ClassifyStream; requests and answers are bytes, so a request that is sent again is not made again."""
    return channel.stream_stream(CLASSIFY_STREAM.path)
