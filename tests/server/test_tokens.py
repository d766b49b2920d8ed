"""Tokens on a running server: changed while it serves, guessed, and wrong at its start."""

import hashlib
import signal
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest

import cnnserve_client as cc
from cnnserve.wire import open_inference_pb2 as pb
from oip import Oip, tensor
from support import RunningServer, picture, serving, spawn, wait_until, write_version

GUESSES = 400
TIMEOUT_S = 30.0


def line(name: str, scopes: str = "infer,read") -> str:
    """A line of the tokens file; the token is the name."""
    return f"{name} {scopes} {hashlib.sha256(name.encode()).hexdigest()}\n"


@pytest.fixture
def tokens_file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text(line("web"))
    return path


@contextmanager
def served(tmp_path: Path, *arguments: str) -> Iterator[RunningServer]:
    write_version(tmp_path / "models" / "tiny" / "1")
    with serving(tmp_path / "log", tmp_path / "models", *arguments) as server:
        yield server


def may_ask(server: RunningServer, token: str) -> bool:
    try:
        with cc.Client(server.address, token=token, retries=0) as client:
            client.list_models()
    except cc.UnauthenticatedError:
        return False
    return True


def test_tokens_change_without_a_restart(tmp_path: Path, tokens_file: Path) -> None:
    with served(tmp_path, "--tokens-file", str(tokens_file)) as server:
        with cc.Client(server.address, token="web", retries=0) as client:
            assert client.classify(picture("left"), model="tiny").results[0].ok
            tokens_file.write_text(line("app"))
            wait_until(lambda: may_ask(server, "app"))
            # Also on a connection that was open before, whose token was known.
            with pytest.raises(cc.UnauthenticatedError, match="the token is not valid"):
                client.classify(picture("left"), model="tiny")
        tokens_file.write_text("nonsense\n")
        wait_until(lambda: "tokens changed and cannot be used" in server.log)
        assert f"{tokens_file}, line 1: it has 1 fields" in server.log
        assert may_ask(server, "app")
        tokens_file.write_text(line("web") + line("app"))
        wait_until(lambda: may_ask(server, "web"))
        assert may_ask(server, "app")


@pytest.mark.parametrize("transport", ["core", "aio"])
def test_requests_that_are_known_by_their_bytes_need_a_token_too(
    tmp_path: Path, tokens_file: Path, transport: str
) -> None:
    arguments = ("--tokens-file", str(tokens_file), "--grpc-transport", transport)
    with served(tmp_path, *arguments) as server, Oip(server.address) as oip:
        for _ in range(5):
            answer = oip.rpc("ModelInfer")(tensor(), timeout=TIMEOUT_S, metadata=[("authorization", "Bearer web")])
            assert np.argmax(np.frombuffer(answer.raw_output_contents[0], np.float32)) == 1
        for metadata in ([], [("authorization", "Bearer wed")], [("Authorization".lower(), "web")]):
            with pytest.raises(grpc.RpcError) as caught:
                oip.rpc("ModelInfer")(tensor(), timeout=TIMEOUT_S, metadata=metadata)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("transport", ["core", "aio"])
def test_guessing_tokens_costs_a_good_client_no_call(tmp_path: Path, tokens_file: Path, transport: str) -> None:
    with served(tmp_path, "--tokens-file", str(tokens_file), "--grpc-transport", transport) as server:

        def guess(number: int) -> None:
            for count in range(GUESSES // 2):
                headers = {"Authorization": f"Bearer guess-{number}-{count}"}
                url = f"http://127.0.0.1:{server.http_port}/v2"
                with pytest.raises(urllib.error.HTTPError, match="401"):
                    urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
                with Oip(server.address) as oip, pytest.raises(grpc.RpcError) as caught:
                    oip.rpc("ModelInfer")(pb.ModelInferRequest(), metadata=[("authorization", f"Bearer {count}")])
                assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED

        guessers = [threading.Thread(target=guess, args=(number,)) for number in range(2)]
        for guesser in guessers:
            guesser.start()
        calls = 0
        with cc.Client(server.address, token="web", retries=0) as client:
            while any(guesser.is_alive() for guesser in guessers):
                assert client.classify(picture("left"), model="tiny").results[0].ok
                calls += 1
        assert calls > 10
        wait_until(lambda: "count=" in server.log)
        lines = [text for text in server.log.splitlines() if "cnnserve.audit" in text]
        assert all("from=127.0.0.1 outcome=UNAUTHENTICATED" in text for text in lines)
        # Far fewer than one for each guess.
        assert len(lines) < GUESSES / 4


def test_reflection_can_be_switched_off(tmp_path: Path) -> None:
    with served(tmp_path, "--no-reflection") as server, grpc.insecure_channel(server.address) as channel:
        call = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")(
            iter([b""]), timeout=TIMEOUT_S
        )
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (line("web") + line("web", "admin"), "line 2: the name 'web' is on line 1 too"),
        (line("web", "everything"), "line 1: unknown scope 'everything'; the scopes are infer, read, metrics, admin"),
    ],
)
def test_a_server_with_a_bad_tokens_file_does_not_start(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "tokens"
    path.write_text(text)
    (tmp_path / "models").mkdir()
    server = spawn(tmp_path / "log", "--repository", tmp_path / "models", "--tokens-file", path)
    assert server.wait() == 1
    assert f"{path}, {said}" in server.log


def test_sighup_reads_the_tokens_at_once(tmp_path: Path, tokens_file: Path) -> None:
    with served(tmp_path, "--tokens-file", str(tokens_file)) as server:
        server.process.send_signal(signal.SIGHUP)
        server.wait_for(f"tokens read again: {tokens_file}")
        assert may_ask(server, "web")


@pytest.mark.parametrize(("proxy", "origin"), [("127.0.0.0/8", "192.0.2.7"), ("192.0.2.0/24", "127.0.0.1")])
def test_only_a_trusted_proxy_says_who_was_refused(tmp_path: Path, tokens_file: Path, proxy: str, origin: str) -> None:
    with served(tmp_path, "--tokens-file", str(tokens_file), "--trusted-proxy", proxy) as server:
        headers = {"X-Forwarded-For": "198.51.100.1, 192.0.2.7"}
        request = urllib.request.Request(f"http://127.0.0.1:{server.http_port}/v2", headers=headers)
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(request, timeout=TIMEOUT_S)
        server.wait_for(f"what='GET /v2' from={origin} outcome=UNAUTHENTICATED count=1")
        with Oip(server.address) as oip, pytest.raises(grpc.RpcError):
            oip.rpc("ServerMetadata")(
                pb.ServerMetadataRequest(), metadata=[("x-forwarded-for", headers["X-Forwarded-For"])]
            )
        server.wait_for(f"ServerMetadata' from={origin} outcome=UNAUTHENTICATED")
