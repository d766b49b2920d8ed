"""The HTTP port: health for load balancers and probes, and the server's and models' metadata."""

import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from google.protobuf import json_format
from google.protobuf.message import Message
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cnnserve.errors import ServingError
from cnnserve.health import Health
from cnnserve.rpc import status
from cnnserve.rpc.inference import InferenceService
from cnnserve.rpc.methods import CallContext
from cnnserve.rpc.status import Code
from cnnserve.wire import open_inference_pb2 as pb

# Probes and metadata need few; a client that never reads its answers must not hold the process up at its end.
_MAX_CONNECTIONS = 1000
_SHUTDOWN_S = 1


_HTTP_STATUS = {
    Code.INVALID_ARGUMENT: 400,
    Code.UNAUTHENTICATED: 401,
    Code.PERMISSION_DENIED: 403,
    Code.NOT_FOUND: 404,
    Code.FAILED_PRECONDITION: 409,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.UNIMPLEMENTED: 501,
    Code.UNAVAILABLE: 503,
    Code.DEADLINE_EXCEEDED: 504,
}


def application(inference: InferenceService, health: Health) -> Starlette:
    """The routes, over the same handlers as gRPC."""

    async def live(_: Request) -> Response:
        return _probe("live", health.is_live)

    async def ready(_: Request) -> Response:
        return _probe("ready", health.is_ready)

    async def server_metadata(_: Request) -> Response:
        return _message(await inference.server_metadata(pb.ServerMetadataRequest(), CallContext()))

    async def model_metadata(request: Request) -> Response:
        name, version = request.path_params["model"], request.path_params.get("version", "")
        message = pb.ModelMetadataRequest(name=name, version=version)
        return _message(await inference.model_metadata(message, CallContext()))

    async def model_ready(request: Request) -> Response:
        name, version = request.path_params["model"], request.path_params.get("version", "")
        answer = await inference.model_ready(pb.ModelReadyRequest(name=name, version=version), CallContext())
        return JSONResponse({"name": name, "ready": answer.ready}, 200 if answer.ready else 503)

    model = "/v2/models/{model}"
    version = model + "/versions/{version}"
    return Starlette(
        routes=[
            Route("/v2", server_metadata),
            Route("/v2/health/live", live),
            Route("/v2/health/ready", ready),
            Route(model, model_metadata),
            Route(version, model_metadata),
            Route(f"{model}/ready", model_ready),
            Route(f"{version}/ready", model_ready),
        ],
        exception_handlers={ServingError: _error, Exception: _error},
    )


class HttpServer:
    """uvicorn on the running loop, on a socket that is bound before it starts."""

    def __init__(self, app: Starlette, listening: socket.socket) -> None:
        self._socket = listening
        self._server = _Uvicorn(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                lifespan="off",
                limit_concurrency=_MAX_CONNECTIONS,
                timeout_graceful_shutdown=_SHUTDOWN_S,
            )
        )

    async def serve(self) -> None:
        """Answers until `stop`."""
        await self._server.serve(sockets=[self._socket])

    def stop(self) -> None:
        """Ends `serve` after the requests in flight."""
        self._server.should_exit = True


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # Signals belong to the whole server; `app` handles them.
        yield


def _probe(name: str, value: bool) -> Response:
    return JSONResponse({name: value}, 200 if value else 503)


def _message(message: Message) -> Response:
    # int64 would come out as JSON strings; shapes are numbers here as in the protocol's text.
    body = json_format.MessageToDict(message, preserving_proto_field_name=True)
    for tensor in [*body.get("inputs", []), *body.get("outputs", [])]:
        tensor["shape"] = [int(size) for size in tensor.get("shape", [])]
    return JSONResponse(body)


async def _error(request: Request, error: Exception) -> Response:
    told = status.of(error, f"{request.method} {request.url.path}")
    return JSONResponse({"error": told.message}, _HTTP_STATUS.get(told.code, 500))
