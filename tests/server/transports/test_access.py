"""Every scope against every RPC and every HTTP route, on a real server with each gRPC transport."""

import hashlib
import http.client
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from cnnserve.transports.http.routes import operations
from cnnserve.wire import classifier_pb2, open_inference_pb2
from support import RunningServer, serving, write_version

INFERENCE, CLASSIFIER, HEALTH = "inference.GRPCInferenceService", "cnnserve.v1.Classifier", "grpc.health.v1.Health"
REFLECTION = "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
# The right to every RPC, said once more than in the method table.
OPEN = {f"{INFERENCE}/{name}" for name in ("ServerLive", "ServerReady", "ModelReady")}
OPEN |= {f"{HEALTH}/Check", f"{HEALTH}/Watch"}
INFER = {f"{INFERENCE}/ModelInfer", f"{INFERENCE}/ModelStreamInfer"}
INFER |= {f"{CLASSIFIER}/Classify", f"{CLASSIFIER}/ClassifyStream"}
READ = {
    f"{INFERENCE}/{name}"
    for name in (
        "ServerMetadata",
        "ModelMetadata",
        "ModelConfig",
        "ModelStatistics",
        "RepositoryIndex",
        "SystemSharedMemoryStatus",
        "CudaSharedMemoryStatus",
        "TraceSetting",
        "LogSettings",
    )
}
READ |= {f"{CLASSIFIER}/ListModels", f"{CLASSIFIER}/GetModel", REFLECTION}
ADMIN = {
    f"{INFERENCE}/{name}"
    for name in (
        "RepositoryModelLoad",
        "RepositoryModelUnload",
        "SystemSharedMemoryRegister",
        "SystemSharedMemoryUnregister",
        "CudaSharedMemoryRegister",
        "CudaSharedMemoryUnregister",
    )
}
ADMIN |= {f"{CLASSIFIER}/LoadModel", f"{CLASSIFIER}/UnloadModel"}
NEEDS = {
    **dict.fromkeys(OPEN, ""),
    **dict.fromkeys(INFER, "infer"),
    **dict.fromkeys(READ, "read"),
    **dict.fromkeys(ADMIN, "admin"),
}
OWN_ROUTES = {"/metrics": "metrics", "/openapi.json": "read"}
TIMEOUT_S = 30.0
SCOPES = ("infer", "read", "metrics", "admin")
REFUSED = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)


def line(name: str, scopes: str) -> str:
    """A line of the tokens file; the token is the name."""
    return f"{name} {scopes} {hashlib.sha256(name.encode()).hexdigest()}\n"


@pytest.fixture(scope="module")
def tokens_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokens") / "tokens"
    path.write_text("".join(line(f"t-{scope}", scope) for scope in SCOPES))
    return path


@pytest.fixture(scope="module", params=["core", "aio"])
def server(
    request: pytest.FixtureRequest, tokens_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("server")
    write_version(folder / "models" / "tiny" / "1")
    arguments = ["--grpc-transport", request.param, "--tokens-file", str(tokens_file), "--shared-memory-prefix", "x"]
    arguments += ["--model-control-mode", "explicit", "--allow-model-control", "--load-model", "tiny"]
    with serving(folder / "log", folder / "models", *arguments) as server:
        yield server


def code(channel: grpc.Channel, name: str, token: str | None) -> tuple[grpc.StatusCode, str]:
    """Status of a call with one empty message."""
    metadata = [] if token is None else [("authorization", f"Bearer {token}")]
    call = channel.stream_stream(f"/{name}", lambda data: data, lambda data: data)(
        iter([b""]), metadata=metadata, timeout=TIMEOUT_S
    )
    try:
        for _ in call:
            if name.endswith("/Watch"):
                call.cancel()
    except grpc.RpcError:
        pass
    return call.code(), call.details()


@pytest.fixture
def channel(server: RunningServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address) as channel:
        yield channel


def test_the_table_of_this_test_is_complete() -> None:
    services = [
        open_inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"],
        classifier_pb2.DESCRIPTOR.services_by_name["Classifier"],
    ]
    named = {f"{service.full_name}/{method.name}" for service in services for method in service.methods}
    assert named | {f"{HEALTH}/Check", f"{HEALTH}/Watch", REFLECTION} == set(NEEDS)
    assert {operation.rpc for operation in operations()} <= set(NEEDS)


@pytest.mark.parametrize("scope", [None, "wrong", *SCOPES])
def test_every_rpc_wants_its_scope(channel: grpc.Channel, scope: str | None) -> None:
    token = f"t-{scope}" if scope in SCOPES else scope
    for name, needed in NEEDS.items():
        found, text = code(channel, name, token)
        if needed in ("", scope):
            assert found not in REFUSED, (name, text)
        elif token in (None, "wrong"):
            assert found is grpc.StatusCode.UNAUTHENTICATED, name
            assert "token" in text
        else:
            assert found is grpc.StatusCode.PERMISSION_DENIED, name
            assert f"no scope '{needed}'" in text


def answer(server: RunningServer, method: str, path: str, token: str | None) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=TIMEOUT_S)
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    response.read()
    connection.close()
    return response


@pytest.mark.parametrize("scope", [None, "wrong", *SCOPES])
def test_every_route_wants_the_scope_of_its_rpc(server: RunningServer, scope: str | None) -> None:
    token = f"t-{scope}" if scope in SCOPES else scope
    routes = [(operation.method, operation.path, NEEDS[operation.rpc]) for operation in operations()]
    routes += [("GET", path, needed) for path, needed in OWN_ROUTES.items()]
    routes += [("HEAD", path, needed) for method, path, needed in routes if method == "GET"]
    for method, template, needed in routes:
        path = re.sub(r"\{\w+\}", "tiny", template)
        response = answer(server, method, path, token)
        if needed in ("", scope):
            assert response.status not in (401, 403), (method, path)
        elif token in (None, "wrong"):
            assert (response.status, response.headers["WWW-Authenticate"]) == (401, "Bearer"), (method, path)
        else:
            assert response.status == 403, (method, path)
            assert "WWW-Authenticate" not in response.headers
        assert answer(server, "OPTIONS", path, None).status == 204


@pytest.mark.parametrize(
    "path",
    [
        "/v2/health/live/../../models/tiny",
        "//v2/models/tiny",
        "/v2/./models/tiny",
        "/v2/models%2Ftiny",
        "/v2/health/%6cive/%2e%2e/models/tiny",
        "/V2/models/tiny",
        "/v2/models/tiny/",
        "/v2/health/live?x=/v2/models/tiny",
    ],
)
def test_no_other_way_to_write_a_path_opens_it(server: RunningServer, path: str) -> None:
    response = answer(server, "GET", path, None)
    assert response.status in (401, 404) or path.startswith("/v2/health/live?")


@pytest.mark.parametrize(
    "name",
    [
        f"{HEALTH}/Check/../../{INFERENCE}/ModelInfer",
        f"/{INFERENCE}/ModelInfer",
        f"{INFERENCE}//ModelInfer",
        f"{INFERENCE}/ModelInfer ",
        f"{INFERENCE.lower()}/ModelInfer",
    ],
)
def test_no_other_way_to_write_a_method_opens_it(channel: grpc.Channel, name: str) -> None:
    assert code(channel, name, None)[0] is grpc.StatusCode.UNIMPLEMENTED


def test_a_message_is_not_read_before_its_client_is_known(channel: grpc.Channel) -> None:
    """A refusal comes although the client never sends its message."""
    ended = threading.Event()

    def never() -> Iterator[bytes]:
        ended.wait(TIMEOUT_S)
        yield from ()

    call = channel.stream_unary(f"/{INFERENCE}/ModelInfer").future(never(), timeout=TIMEOUT_S)
    error = call.exception()
    ended.set()
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
