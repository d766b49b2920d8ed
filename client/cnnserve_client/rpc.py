"""The table of the RPCs: full name and message types of each, for blocking and asyncio channels.

The table replaces the service stubs that grpcio-tools generates, because generated stubs require a minimum version of
grpcio.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import grpc
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import Int32Value, StringValue

from cnnserve.wire import classifier_pb2 as pb

from . import open_inference


@dataclass(frozen=True)
class Method:
    """One RPC: its full name and the types of its messages."""

    path: str
    request: type[Message]
    response: type[Message]
    safe: bool = True
    """True if the RPC changes nothing on the server, so that the client may send a request twice."""
    light: bool = False
    """True if a server needs almost no time for the RPC.

    If a client has several connections, it then gives each a share of the timeout and goes on to the next.
    """


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

INFER: Final = Method("/inference.GRPCInferenceService/ModelInfer", open_inference.REQUEST, open_inference.RESPONSE)

# If the client defined grpc.health.v1 itself, programs that also import grpcio-health-checking would fail: protobuf
# refuses a second file with the same definitions. HealthCheckRequest has one string in field 1 and HealthCheckResponse
# one enum in field 1, so StringValue and Int32Value have the same encoding.
HEALTH: Final = Method("/grpc.health.v1.Health/Check", StringValue, Int32Value, light=True)

METHODS: Final = (CLASSIFY, INFER, LIST_MODELS, GET_MODEL, LOAD_MODEL, UNLOAD_MODEL, HEALTH)


def stubs(channel: grpc.Channel | grpc.aio.Channel) -> dict[str, Callable[..., Any]]:
    """Returns a function that sends each RPC of the table, by path. On an asyncio channel its result is awaitable.

    The functions return the response as bytes; `calls.Call.result` decodes it.
    """
    return {method.path: channel.unary_unary(method.path, method.request.SerializeToString) for method in METHODS}


def stream(channel: grpc.Channel | grpc.aio.Channel) -> Callable[..., Any]:
    """Returns a function that opens a ClassifyStream.

    Its requests and responses are bytes, so that a request which is sent again need not be encoded again.
    """
    return channel.stream_stream(CLASSIFY_STREAM.path)
