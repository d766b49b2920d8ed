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
    """One unary RPC."""

    path: str
    request: type[Message]
    answer: type[Message]


CLASSIFY: Final = Method("/cnnserve.v1.Classifier/Classify", pb.ClassifyRequest, pb.ClassifyResponse)
LIST_MODELS: Final = Method("/cnnserve.v1.Classifier/ListModels", pb.ListModelsRequest, pb.ListModelsResponse)
GET_MODEL: Final = Method("/cnnserve.v1.Classifier/GetModel", pb.GetModelRequest, pb.GetModelResponse)
LOAD_MODEL: Final = Method("/cnnserve.v1.Classifier/LoadModel", pb.LoadModelRequest, pb.LoadModelResponse)
UNLOAD_MODEL: Final = Method("/cnnserve.v1.Classifier/UnloadModel", pb.UnloadModelRequest, pb.UnloadModelResponse)

# protobuf refuses a second file that defines grpc.health.v1, so defining it here would break programs that also import
# grpcio-health-checking. HealthCheckRequest is one string in field 1 and HealthCheckResponse one enum in field 1, which
# are StringValue and Int32Value byte for byte.
HEALTH: Final = Method("/grpc.health.v1.Health/Check", StringValue, Int32Value)

METHODS: Final = (CLASSIFY, LIST_MODELS, GET_MODEL, LOAD_MODEL, UNLOAD_MODEL, HEALTH)


def stubs(channel: grpc.Channel | grpc.aio.Channel) -> dict[str, Callable[..., Any]]:
    """A callable per path of the method table; awaitable on an aio channel. Answers are bytes, see `calls.Call`."""
    return {method.path: channel.unary_unary(method.path, method.request.SerializeToString) for method in METHODS}
