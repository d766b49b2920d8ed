"""Starting and stopping a server process."""

import contextlib
import re
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2

from cnnserve.wire import classifier_pb2 as c
from support import HANG_S, picture, rewrite_manifest, serving, spawn, tiny_onnx, wait_until, write_version


def classify(channel: grpc.Channel) -> "grpc.UnaryUnaryMultiCallable":
    return channel.unary_unary(
        "/cnnserve.v1.Classifier/Classify",
        request_serializer=c.ClassifyRequest.SerializeToString,
        response_deserializer=c.ClassifyResponse.FromString,
    )


_REFUSAL = re.compile("refused|GOAWAY|shutdown|shutting down|socket closed|unavailable", re.IGNORECASE)
REQUEST = c.ClassifyRequest(model="tiny", images=[c.Image(encoded=picture("left"))] * 4, top_k=1)


@pytest.mark.parametrize("flag", ["--grpc-port", "--http-port"])
def test_a_busy_port_exits_and_names_it(tiny_repository: Path, tmp_path: Path, flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = spawn(tmp_path / "log", "--model-repository", tiny_repository, flag, str(port))
        assert server.wait() == 1
    assert str(port) in server.log
    assert "Traceback" not in server.log


def test_a_bad_setting_exits_with_2_and_names_it(tmp_path: Path) -> None:
    server = spawn(tmp_path / "log", "--model-repository", tmp_path / "nothing")
    assert server.wait() == 2
    assert "nothing' is not a folder" in server.log


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler of its own for a signal."""
    mask = re.search(r"SigCgt:\s*([0-9a-f]+)", Path(f"/proc/{pid}/status").read_text())
    return mask is not None and bool(int(mask[1], 16) >> (number - 1) & 1)


@contextlib.contextmanager
def ignored_interrupts() -> Iterator[None]:
    """A process that starts with SIGINT ignored catches it only once the command does: Python leaves it as it is."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def imports(pid: int, library: str) -> bool:
    """Whether a process has a library in its memory."""
    return library in Path(f"/proc/{pid}/maps").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("when", ["at once", "while importing", "while binding"])
def test_a_signal_while_starting_ends_it_cleanly(tmp_path: Path, number: signal.Signals, when: str) -> None:
    with ignored_interrupts():
        server = spawn(tmp_path / "log", "--model-repository", tmp_path)
    pid = server.process.pid
    wait_until(lambda: catches(pid, number))
    if when == "while importing":
        wait_until(lambda: imports(pid, "onnxruntime"))
    if when == "while binding":
        server.wait_for("listening on")
    server.process.send_signal(number)
    assert server.wait() == 0
    assert "Traceback" not in server.log


def test_readiness_needs_one_model_and_strictly_all(tiny_repository: Path, tmp_path: Path) -> None:
    with serving(tmp_path / "log", tiny_repository, "--strict-readiness") as server:
        assert "NOT ready" in server.log
        with grpc.insecure_channel(server.address) as channel:
            check = channel.unary_unary(
                "/grpc.health.v1.Health/Check",
                request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
                response_deserializer=health_pb2.HealthCheckResponse.FromString,
            )
            assert check(health_pb2.HealthCheckRequest(), timeout=HANG_S).status == 2
            assert classify(channel)(REQUEST, timeout=HANG_S).results[0].classes[0].label == "left"


def test_an_empty_repository_is_not_ready(tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir()
    with serving(tmp_path / "log", tmp_path / "repository") as server:
        assert "NOT ready; models: none" in server.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopping_under_load_answers_everything_accepted(tmp_path: Path, number: signal.Signals) -> None:
    write_version(tmp_path / "repository" / "tiny" / "1")
    answered, refused, lost = [], [], []
    with serving(tmp_path / "log", tmp_path / "repository") as server:
        stop = threading.Event()

        def client() -> None:
            with grpc.insecure_channel(server.address) as channel:
                ask = classify(channel)
                while not stop.is_set():
                    try:
                        answered.append(ask(REQUEST, timeout=HANG_S).results[3].classes[0].label)
                    except grpc.RpcError as error:
                        # Once it drains, a call may be refused; none may be cut off.
                        (refused if error.code() is grpc.StatusCode.UNAVAILABLE else lost).append(error)
                        return

        threads = [threading.Thread(target=client) for _ in range(8)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(answered) >= 100)
        server.process.send_signal(number)
        assert server.wait() == 0
        stop.set()
        for thread in threads:
            thread.join()
    assert not lost
    assert set(answered) == {"left"}
    assert len(refused) == 8
    for error in refused:
        assert _REFUSAL.search(error.details()), error


def test_draining_ends_watches_and_streams(tmp_path: Path) -> None:
    write_version(tmp_path / "repository" / "tiny" / "1")
    statuses: list[int] = []
    answers: list[str] = []
    # Both would be open for ever, so a server that waited for them would hang.
    flags = ["--drain-grace-s", "3600"]
    with (
        serving(tmp_path / "log", tmp_path / "repository", *flags) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        watch = channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )(health_pb2.HealthCheckRequest())
        hold = threading.Event()

        def requests() -> Iterator[c.ClassifyStreamRequest]:
            yield c.ClassifyStreamRequest(id="1", request=REQUEST)
            hold.wait()

        stream = channel.stream_stream(
            "/cnnserve.v1.Classifier/ClassifyStream",
            request_serializer=c.ClassifyStreamRequest.SerializeToString,
            response_deserializer=c.ClassifyStreamResponse.FromString,
        )(requests())
        answers.append(next(stream).id)
        statuses.append(next(watch).status)
        assert server.terminate() == 0
        statuses += [item.status for item in watch]
        with pytest.raises(grpc.RpcError, match="send the requests without a response to another server"):
            next(stream)
        hold.set()
    assert statuses == [1, 2]
    assert answers == ["1"]
    assert watch.code() is grpc.StatusCode.OK
    # What the stream's client sent and got no answer for was not looked at.
    assert stream.code() is grpc.StatusCode.UNAVAILABLE


def test_a_model_without_softmax_is_named_at_start(tmp_path: Path) -> None:
    logits = write_version(tmp_path / "repository" / "logits" / "1")
    (logits / "model.onnx").write_bytes(tiny_onnx(softmax=False))
    rewrite_manifest(logits)
    write_version(tmp_path / "repository" / "tiny" / "1")
    with serving(tmp_path / "log", tmp_path / "repository") as server:
        assert re.search(r"model logits version 1 did not load: .*the manifest says softmax", server.log)
        assert re.search(r"model tiny version 1 READY in [\d.]+ s; \d+ nodes on CPUExecutionProvider", server.log)
