"""Limits of one client, and of connections, on a real server."""

import http.client
import logging
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

import cnnserve_client as cc
from cnnserve import app
from cnnserve.config.settings import ServerConfig
from cnnserve.transports.front import Ports
from cnnserve.wire import open_inference_pb2 as pb
from oip import Oip, encoded, tensor
from support import RunningServer, picture, serving, wait_until, write_version

TIMEOUT_S = 30.0
TRANSPORTS = ("core", "aio")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    write_version(tmp_path / "models" / "tiny" / "1")
    return tmp_path / "models"


def status(server: RunningServer, path: str, connection: http.client.HTTPConnection | None = None) -> tuple[int, str]:
    """Status and Retry-After of a request."""
    used = connection or http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=TIMEOUT_S)
    try:
        used.request("GET", path)
        response = used.getresponse()
        response.read()
        return response.status, response.headers.get("Retry-After", "")
    finally:
        if connection is None:
            used.close()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_client_that_asks_too_often_is_refused_with_a_time(models: Path, tmp_path: Path, transport: str) -> None:
    arguments = ("--client-requests-per-second", "0.1", "--grpc-transport", transport)
    with serving(tmp_path / "log", models, *arguments) as server, Oip(server.address) as oip:
        # The one request of ten seconds.
        assert oip("ServerMetadata").name == "cnnserve"
        with pytest.raises(grpc.RpcError) as caught:
            oip("ModelInfer", tensor())
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        trailers = dict(caught.value.trailing_metadata())
        assert 1000 < int(trailers["grpc-retry-pushback-ms"]) <= 10_000
        # Both ports are one account; health stays open.
        refused, retry = status(server, "/v2")
        assert refused == 429
        assert 1 <= int(retry) <= 10
        for _ in range(5):
            assert oip("ServerReady").ready
            assert status(server, "/v2/health/ready")[0] == 200
        assert "outcome=RESOURCE_EXHAUSTED" in server.log


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_stream_is_read_more_slowly(models: Path, tmp_path: Path, transport: str) -> None:
    arguments = ("--client-requests-per-second", "20", "--grpc-transport", transport)
    with serving(tmp_path / "log", models, *arguments) as server, Oip(server.address) as oip:
        began = time.monotonic()
        answers = list(oip.stream(iter([tensor()] * 40)))
        assert [answer.error_message for answer in answers] == [""] * 40
        assert time.monotonic() - began > 0.9


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_client_has_so_many_images_in_flight(models: Path, tmp_path: Path, transport: str) -> None:
    arguments = ("--client-images-in-flight", "4", "--grpc-transport", transport)
    with serving(tmp_path / "log", models, *arguments) as server, Oip(server.address) as oip:
        for _ in range(5):
            assert oip("ModelInfer", tensor()).outputs
        code, text = oip.fails("ModelInfer", encoded(*[picture("left")] * 5))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "a client may have 4 in flight" in text
        with cc.Client(server.address, retries=0) as client:
            assert len(client.classify(*[[picture("left")] * 4], model="tiny").results) == 4
            with pytest.raises(cc.InvalidInputError, match="client_images_in_flight"):
                client.classify([picture("left")] * 5, model="tiny")


def test_an_address_has_so_many_http_connections(models: Path, tmp_path: Path) -> None:
    with serving(tmp_path / "log", models, "--max-connections-per-address", "3") as server, ExitStack() as stack:
        address = ("127.0.0.1", server.http_port)
        kept = [stack.enter_context(socket.create_connection(address, TIMEOUT_S)) for _ in range(3)]
        # All three are accepted before the fourth.
        for one in kept:
            one.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            assert one.recv(4096).startswith(b"HTTP/1.1 200")
        with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
            status(server, "/v2/health/live")
        kept[0].close()

        def answers() -> bool:
            try:
                return status(server, "/v2/health/live")[0] == 200
            except (http.client.RemoteDisconnected, ConnectionError):
                return False

        wait_until(answers)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_grpc_port_has_so_many_connections(models: Path, tmp_path: Path, transport: str) -> None:
    arguments = ("--max-connections", "3", "--grpc-transport", transport)
    options = [("grpc.use_local_subchannel_pool", 1)]
    with serving(tmp_path / "log", models, *arguments) as server, ExitStack() as stack:

        def channel() -> grpc.Channel:
            return stack.enter_context(grpc.insecure_channel(server.address, options))

        def ask(of: grpc.Channel) -> grpc.StatusCode:
            call = of.unary_unary("/inference.GRPCInferenceService/ServerLive", None, None)
            try:
                call(b"", timeout=2)
            except grpc.RpcError as error:
                return error.code()
            return grpc.StatusCode.OK

        assert [ask(channel()) for _ in range(3)] == [grpc.StatusCode.OK] * 3
        assert ask(channel()) in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_connections_end_at_their_age_and_no_call_with_them(models: Path, tmp_path: Path, transport: str) -> None:
    arguments = ("--max-connection-age-s", "0.5", "--grpc-transport", transport)
    with serving(tmp_path / "log", models, *arguments) as server:
        end = time.monotonic() + 3
        calls = 0
        with Oip(server.address) as oip:
            while time.monotonic() < end:
                assert oip("ModelInfer", tensor()).outputs
                calls += 1
        assert calls > 10
        connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=TIMEOUT_S)
        assert status(server, "/v2", connection)[0] == 200
        first = connection.sock
        assert first is not None
        time.sleep(0.7)
        connection.request("GET", "/v2")
        response = connection.getresponse()
        assert response.read()
        assert response.headers["Connection"] == "close"
        connection.close()


def test_calls_at_once_on_a_connection_wait_for_their_turn(models: Path, tmp_path: Path) -> None:
    with serving(tmp_path / "log", models, "--max-streams-per-connection", "2") as server, Oip(server.address) as oip:

        def never() -> Iterator[pb.ModelInferRequest]:
            yield tensor()
            time.sleep(1)

        streams = [oip.stream(never()) for _ in range(2)]
        assert all(next(stream).infer_response for stream in streams)
        began = time.monotonic()
        assert oip("ServerLive").live
        assert time.monotonic() - began > 0.3
        for stream in streams:
            list(stream)


@pytest.mark.parametrize(("host", "insecure", "lines"), [("127.0.0.1", False, 0), ("::", False, 1), ("::", True, 0)])
def test_a_server_for_other_machines_says_what_is_open(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, host: str, insecure: bool, lines: int
) -> None:
    config = ServerConfig(repository=tmp_path, host=host, insecure=insecure)
    with caplog.at_level(logging.WARNING):
        app._announce(config, Ports(1, 2), 1)
    assert len(caplog.records) == lines
