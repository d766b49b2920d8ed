"""Hostile clients on ports with TLS and tokens, on every transport: good clients are served, and memory is bounded."""

import contextlib
import hashlib
import http.client
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from certificates import Authority, flags
from cnnserve.wire import classifier_pb2 as c
from cnnserve.wire import open_inference_pb2 as o
from support import HANG_S, RunningServer, picture, png, serving, write_version

INFER = "/inference.GRPCInferenceService/ModelInfer"
CLASSIFY = "/cnnserve.v1.Classifier/Classify"
TOKEN = {"authorization": "Bearer secret"}
MIB = 2**20
# What a server may take beyond its idle size: its budget of 32 MiB, copies that no budget counts, and TLS buffers.
MOST_MIB = 384


@pytest.fixture(scope="module", params=["core", "aio"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pem"))


@pytest.fixture(scope="module")
def server(transport: str, authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("server")
    write_version(folder / "models" / "tiny" / "1")
    (folder / "tokens").write_text(f"web infer {hashlib.sha256(b'secret').hexdigest()}\n")
    arguments = [*flags(authority.issue("server")), "--tokens-file", str(folder / "tokens")]
    arguments += ["--grpc-transport", transport, "--max-message-mib", "16", "--max-pending-mib", "32"]
    with serving(folder / "log", folder / "models", *arguments) as server:
        yield server
        assert server.terminate() == 0
        assert "Traceback" not in server.log


def channel(server: RunningServer, authority: Authority) -> grpc.Channel:
    options = [("grpc.max_send_message_length", -1), ("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
    return grpc.secure_channel(
        f"localhost:{server.grpc_port}", grpc.ssl_channel_credentials(authority.root.read_bytes()), options
    )


@pytest.fixture
def ask(server: RunningServer, authority: Authority) -> Iterator[Callable[..., grpc.Future]]:
    """Calls a method with bytes, with a token unless there is other `metadata`."""
    with channel(server, authority) as opened:

        def ask(method: str, data: bytes, metadata: tuple[tuple[str, str], ...] = (*TOKEN.items(),)) -> grpc.Future:
            return opened.unary_unary(method).future(data, timeout=HANG_S, metadata=metadata)

        yield ask


def classify(image: bytes, count: int = 1) -> bytes:
    request = c.ClassifyRequest(model="tiny", images=[c.Image(encoded=image)] * count, top_k=1)
    return request.SerializeToString()


def is_served(server: RunningServer, authority: Authority) -> bool:
    """Returns whether new connections to both ports get their responses."""
    with channel(server, authority) as opened:
        data = opened.unary_unary(CLASSIFY)(classify(picture("left")), timeout=HANG_S, metadata=(*TOKEN.items(),))
    over_http = http.client.HTTPSConnection(
        "localhost", server.http_port, timeout=HANG_S, context=ssl.create_default_context(cafile=authority.root)
    )
    with contextlib.closing(over_http):
        over_http.request("POST", "/v1/models/tiny:classify", picture("left"), TOKEN)
        return c.ClassifyResponse.FromString(data).results[0].classes[0].label == "left" and (
            over_http.getresponse().status == 200
        )


def resident_mib(server: RunningServer) -> int:
    pages = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1])
    return pages * 4096 // MIB


def test_costly_requests_are_refused_and_guessed_tokens_before_them(ask: Callable[..., grpc.Future]) -> None:
    many = o.ModelInferRequest(model_name="tiny", inputs=[o.ModelInferRequest.InferInputTensor()] * 100_000)
    costly = ((INFER, many.SerializeToString()), (CLASSIFY, classify(b"x", 100_000)))
    for method, data in costly:
        error = ask(method, data).exception()
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "more than 20000 fields" in error.details()
        for metadata in ((), (("authorization", "Bearer guess"),)):
            error = ask(method, data, metadata).exception()
            assert error.code() is grpc.StatusCode.UNAUTHENTICATED


def test_bursts_are_answered_or_refused_with_a_time_for_the_retry(
    ask: Callable[..., grpc.Future], server: RunningServer, authority: Authority
) -> None:
    data, guess = classify(picture("left")), (("authorization", "Bearer guess"),)
    good = [ask(CLASSIFY, data) for _ in range(400)]
    bad = [ask(CLASSIFY, data, guess) for _ in range(400)]
    counts = Counter(call.code().name for call in good)
    assert counts["OK"] > 0
    assert set(counts) <= {"OK", "RESOURCE_EXHAUSTED"}
    for call in good:
        if call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
            assert "grpc-retry-pushback-ms" in dict(call.trailing_metadata())
    assert {call.code().name for call in bad} == {"UNAUTHENTICATED"}
    assert is_served(server, authority)


def test_peers_that_stop_in_the_middle_hold_up_nobody(server: RunningServer, authority: Authority) -> None:
    """Before, in and after the handshake, in a request, and with responses that they never read."""
    context = ssl.create_default_context(cafile=authority.root)
    with contextlib.ExitStack() as stack:
        for port in (server.grpc_port, server.http_port):
            for begin in (b"", b"\x16\x03\x01", b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.1\r\n\r\n"):
                for _ in range(20):
                    peer = stack.enter_context(socket.create_connection(("127.0.0.1", port), HANG_S))
                    peer.sendall(begin)
        for head in (b"", b"POST /v1/models/tiny:classify HTTP/1.1\r\nHost: localhost\r\n"):
            for _ in range(20):
                raw = socket.create_connection(("127.0.0.1", server.http_port), HANG_S)
                peer = stack.enter_context(context.wrap_socket(raw, server_hostname="localhost"))
                peer.sendall(head)
        assert is_served(server, authority)
        raw = socket.create_connection(("127.0.0.1", server.http_port), HANG_S)
        deaf = stack.enter_context(context.wrap_socket(raw, server_hostname="localhost"))
        deaf.setblocking(False)
        with contextlib.suppress(ssl.SSLWantWriteError, ssl.SSLError, OSError):
            for _ in range(100):
                deaf.send(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2000)
        assert is_served(server, authority)


def test_large_messages_at_once_stay_within_the_memory(
    ask: Callable[..., grpc.Future], server: RunningServer, authority: Authority, transport: str
) -> None:
    before = resident_mib(server)
    noise = np.random.default_rng(0).integers(0, 256, (1100, 1100), np.uint8)
    large, guess = classify(png(noise), 8), (("authorization", "Bearer guess"),)
    calls = [ask(CLASSIFY, large) for _ in range(12)]
    refused = [ask(CLASSIFY, large, guess) for _ in range(12)]
    highest = before
    while not all(call.done() for call in (*calls, *refused)):
        highest = max(highest, resident_mib(server))
        next(call for call in (*calls, *refused) if not call.done()).exception()
    codes = {call.code().name for call in calls}
    assert "OK" in codes
    # The core lets messages wait at their senders. `grpc.aio` reads them, so its memory is not bounded by the budget.
    assert codes <= ({"OK"} if transport == "core" else {"OK", "RESOURCE_EXHAUSTED"})
    assert {call.code().name for call in refused} <= {"UNAUTHENTICATED", "RESOURCE_EXHAUSTED"}
    if transport == "core":
        assert highest - before < MOST_MIB
    assert is_served(server, authority)
