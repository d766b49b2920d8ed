"""Starting and stopping a server process."""

import asyncio
import contextlib
import http.client
import json
import os
import pty
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import uvicorn
from grpc_health.v1 import health_pb2

from cnnserve import app
from cnnserve.config.settings import ServerConfig
from cnnserve.wire import classifier_pb2 as c
from support import (
    HANG_S,
    RunningServer,
    picture,
    rewrite_manifest,
    serving,
    spawn,
    tiny_onnx,
    wait_until,
    write_version,
)


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
    said = f"cannot listen on 127.0.0.1:{port} ({flag[2:].replace('-', '_')}): another process uses this port"
    assert f"{said}; choose another one, or {flag} 0 for a free one" in server.log
    assert "Traceback" not in server.log
    assert "Errno" not in server.log
    # Neither grpc nor absl has told anything in its own words.
    assert not re.search(r"\.cc:|UNKNOWN", server.log)


def test_http_that_does_not_start_exits_with_its_cause(
    tiny_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, the server said SERVING, and its HTTP port never answered."""
    (tmp_path / "starlette").mkdir()
    (tmp_path / "starlette" / "__init__.py").write_text("raise ImportError('starlette is broken')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    server = spawn(tmp_path / "log", "--model-repository", tiny_repository)
    assert server.wait() == 1
    assert "the HTTP port has failed, so the server stops: ImportError('starlette is broken')" in server.log
    assert "stopped" in server.log


async def test_http_that_dies_ends_the_server(tiny_repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ServerConfig(tiny_repository, grpc_port=0, http_port=0)
    dying = asyncio.Event()

    async def on_tick(server: uvicorn.Server, _: int) -> bool:
        if dying.is_set():
            raise OSError(24, "Too many open files")
        return server.should_exit

    monkeypatch.setattr(uvicorn.Server, "on_tick", on_tick)
    serving_it = asyncio.create_task(app.serve(config, asyncio.Event()))
    await asyncio.sleep(0.5)
    assert not serving_it.done()
    dying.set()
    async with asyncio.timeout(HANG_S):
        with pytest.raises(OSError, match=r"the HTTP port has failed.*Too many open files"):
            await serving_it


def test_too_few_open_files_exit_and_are_named(tiny_repository: Path, tmp_path: Path) -> None:
    command = f"ulimit -n 40; exec {sys.executable} -m cnnserve serve --model-repository {tiny_repository}"
    ended = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=HANG_S, check=False)
    assert ended.returncode == 1
    assert "the limit of open files is 40, and the server needs 64; raise it with ulimit -n" in ended.stderr


def test_a_server_without_free_files_serves_again_when_they_are_free(tiny_repository: Path, tmp_path: Path) -> None:
    with serving(tmp_path / "log", tiny_repository) as server:
        # Not while HTTP starts, which would end the server.
        wait_until(lambda: http_live(server) == 200)
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (64, 64))
        with contextlib.ExitStack() as stack:
            for port in (server.http_port, server.grpc_port):
                for _ in range(100):
                    stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            assert http_live(server) == 0
        wait_until(lambda: http_live(server) == 200)
        with grpc.insecure_channel(server.address) as channel:
            assert classify(channel)(REQUEST, timeout=HANG_S, wait_for_ready=True).results


def http_live(server: RunningServer) -> int:
    """Returns the status of one question for liveness, 0 if the connection ended."""
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=HANG_S)
    with contextlib.closing(connection):
        try:
            connection.request("GET", "/v2/health/live")
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return 0


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
def test_a_signal_while_starting_ends_it_cleanly(
    tiny_repository: Path, tmp_path: Path, number: signal.Signals, when: str
) -> None:
    with ignored_interrupts():
        server = spawn(tmp_path / "log", "--model-repository", tiny_repository)
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


def test_an_empty_repository_ends_the_server_unless_models_may_come(tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir()
    server = spawn(tmp_path / "log", "--repository", tmp_path / "repository")
    assert server.wait() == 1
    assert "repository holds no model folder (MODEL/1/model.onnx); publish a model in it" in server.log
    for mode in ("poll", "explicit"):
        with serving(tmp_path / "log", tmp_path / "repository", "--model-control-mode", mode) as server:
            assert "models: none" in server.log
            assert "holds no model folder" in server.log


@pytest.mark.parametrize(("given", "said"), [("tiny", "folder of a model"), ("tiny/1", "folder of a version")])
def test_a_repository_given_too_low_is_named(tiny_repository: Path, tmp_path: Path, given: str, said: str) -> None:
    server = spawn(tmp_path / "log", "--repository", tiny_repository / given)
    assert server.wait() == 1
    assert f"{said}, no model repository; the model repository is probably {tiny_repository}" in server.log


def test_a_repository_given_too_high_is_named(tmp_path: Path) -> None:
    write_version(tmp_path / "above" / "models" / "tiny" / "1")
    server = spawn(tmp_path / "log", "--repository", tmp_path / "above")
    assert server.wait() == 1
    assert f"but models does; the model repository is probably {tmp_path / 'above' / 'models'}" in server.log


def test_a_repository_given_as_a_model_is_named(tmp_path: Path) -> None:
    write_version(tmp_path / "models" / "tiny" / "1")
    server = spawn(tmp_path / "log", "--model", f"a={tmp_path}/models")
    assert server.wait() == 1
    assert "model a is not served: its folder holds no version folder, but models (tiny), so it is a" in server.log
    assert "name it with --repository, or name the folder of one model: --model tiny=…/tiny" in server.log


def test_models_that_failed_leave_the_server_up(tmp_path: Path) -> None:
    (tmp_path / "repository" / "broken" / "1").mkdir(parents=True)
    (tmp_path / "repository" / "broken" / "1" / "model.onnx").write_text("no model")
    with serving(tmp_path / "log", tmp_path / "repository") as server:
        assert "NOT ready; models: none" in server.log


@pytest.mark.parametrize("what", ["version", "file of a version", "file", "folder with a file", "model"])
def test_a_model_without_a_repository(tmp_path: Path, what: str) -> None:
    version = write_version(tmp_path / "tiny" / "3")
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / ("model.onnx" if what == "folder with a file" else "other.onnx")).write_bytes(tiny_onnx())
    if what == "file":
        (tmp_path / "plain" / "model.onnx").write_text("another one, which is damaged")
    path, number = {
        "version": (version, 3),
        "file of a version": (version / "model.onnx", 3),
        "file": (tmp_path / "plain" / "other.onnx", 1),
        "folder with a file": (tmp_path / "plain", 1),
        "model": (tmp_path / "tiny", 3),
    }[what]
    # The manifests of a model's versions name the model. A version alone may have another name.
    name = "tiny" if what == "model" else "digits"
    server = spawn(tmp_path / "log", "--model", f"{name}={path}")
    try:
        server.wait_for(f"model {name} version {number} READY")
    finally:
        assert server.terminate() == 0


def test_several_models_without_a_repository_are_polled(tmp_path: Path) -> None:
    version = write_version(tmp_path / "tiny" / "1")
    models = ["--model", f"tiny={version.parent}", "--model", f"b={version}"]
    flags = [*models, "--model-control-mode", "poll", "--poll-interval-s", "0.1"]
    server = spawn(tmp_path / "log", *flags)
    try:
        server.wait_for("model tiny version 1 READY")
        server.wait_for("model b version 1 READY")
        write_version(tmp_path / "tiny" / "2")
        server.wait_for("model tiny version 2 READY")
    finally:
        assert server.terminate() == 0


class Callers:
    """Clients that call without a pause until they are refused, and what became of their calls."""

    def __init__(self, server: RunningServer) -> None:
        self.answers: list[str] = []
        self.refused: list[grpc.RpcError] = []
        self.lost: list[Exception] = []
        self._server = server

    def one_by_one(self) -> None:
        with grpc.insecure_channel(self._server.address) as channel:
            while self._record(classify(channel).future(REQUEST, timeout=HANG_S)):
                pass

    def in_bursts(self) -> None:
        with grpc.insecure_channel(self._server.address) as channel:
            while all(map(self._record, [classify(channel).future(REQUEST, timeout=HANG_S) for _ in range(20)])):
                pass

    def over_http(self) -> None:
        client = http.client.HTTPConnection("127.0.0.1", self._server.http_port, timeout=HANG_S)
        try:
            while True:
                client.request("POST", "/v1/models/tiny:classify", picture("left"), {"Content-Type": "image/png"})
                response = client.getresponse()
                body = response.read()
                if response.status == 503:
                    return
                self.answers.append(json.loads(body)["results"][0]["classes"][0]["label"])
        except ConnectionRefusedError:
            return
        except (OSError, http.client.HTTPException) as error:
            self.lost.append(error)

    def _record(self, call: Any) -> bool:
        try:
            self.answers.append(call.result().results[3].classes[0].label)
        except grpc.RpcError as error:
            # Once it drains, a call may be refused; none may be cut off.
            (self.refused if error.code() is grpc.StatusCode.UNAVAILABLE else self.lost).append(error)
            return False
        return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopping_under_load_answers_everything_accepted(tmp_path: Path, number: signal.Signals) -> None:
    write_version(tmp_path / "repository" / "tiny" / "1")
    with serving(tmp_path / "log", tmp_path / "repository") as server:
        callers = Callers(server)
        work = [*[callers.one_by_one] * 8, callers.in_bursts, *[callers.over_http] * 4]
        threads = [threading.Thread(target=target) for target in work]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(callers.answers) >= 500)
        server.process.send_signal(number)
        assert server.wait() == 0
        for thread in threads:
            thread.join()
    assert not callers.lost
    assert set(callers.answers) == {"left"}
    assert len(callers.refused) >= 8
    for error in callers.refused:
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


@contextlib.contextmanager
def unfinished_request(port: int) -> Iterator[None]:
    """An HTTP request whose body does not end, so that a drain waits for it."""
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"POST /v1/models/tiny:classify HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx")
        yield


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(tiny_repository: Path, tmp_path: Path, number: signal.Signals) -> None:
    with (
        serving(tmp_path / "log", tiny_repository, "--drain-grace-s", "3600") as server,
        unfinished_request(server.http_port),
    ):
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("draining")
        # Within 0.1 s, it would count as the same signal.
        time.sleep(0.2)
        server.process.send_signal(number)
        assert server.wait() == 128 + number
        assert f"second signal ({number.name})" in server.log


def test_a_pipe_in_place_of_a_config_does_not_delay_the_end(tiny_repository: Path, tmp_path: Path) -> None:
    root = shutil.copytree(tiny_repository, tmp_path / "repository")
    os.mkfifo(root / "plain" / "config.pbtxt")
    server = spawn(tmp_path / "log", "--model-repository", root, "--drain-grace-s", "3600")
    server.wait_for("model tiny version 1 READY")
    assert server.terminate() == 0


def test_hangup_looks_for_changed_files(tmp_path: Path) -> None:
    root = tmp_path / "repository"
    write_version(root / "tiny" / "1")
    with serving(tmp_path / "log", root, "--model-control-mode", "poll", "--poll-interval-s", "3600") as server:
        write_version(root / "tiny" / "2")
        (root / "plain" / "1").mkdir(parents=True)
        (root / "plain" / "1" / "model.onnx").write_bytes(tiny_onnx())
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("model tiny version 2 READY")
        server.wait_for("model plain version 1 READY")


def test_hangup_without_polling_changes_nothing(tiny_repository: Path, tmp_path: Path) -> None:
    with serving(tmp_path / "log", tiny_repository) as server:
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("SIGHUP: nothing to do, because model_control_mode is none")
        assert server.terminate() == 0


def test_a_closed_terminal_drains(tiny_repository: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    with serving(tmp_path / "log", tiny_repository, stdin=theirs) as server:
        os.close(theirs)
        os.close(ours)
        server.process.send_signal(signal.SIGHUP)
        assert server.wait() == 0
        assert "draining" in server.log


def test_handlers_come_before_slow_imports() -> None:
    # Until then, a SIGTERM to process 1 of a container is lost.
    code = "import sys; before = {*sys.modules}; import cnnserve.cli; print(*{*sys.modules} - before)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"argparse", "asyncio", "dataclasses", "inspect", "logging", "numpy", "re"} & {*ended.stdout.split()}
