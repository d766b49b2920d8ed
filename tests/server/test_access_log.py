"""Lines about requests, administrators and errors, of a real server over both transports of gRPC and over HTTP."""

import hashlib
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import httpx
import pytest

from cnnserve.api import status
from cnnserve.api.methods import CallContext
from cnnserve.api.observing import Observer
from cnnserve.logs import REQUEST, Fields, Formatter, JsonFormatter
from cnnserve.wire import open_inference_pb2 as o
from cnnserve_client import Client, CnnserveError
from oip import Oip, rows, tensor
from support import HANG_S, RunningServer, picture, serving, wait_until, write_version

_HOSTILE = 'x status=OK\n2026-01-01 INFO forged: "\x1b[2J'


def lines(server: RunningServer, logger: str) -> list[dict[str, Any]]:
    """The JSON lines of one logger."""
    found = [json.loads(line) for line in server.log.splitlines()]
    return [line for line in found if line["logger"] == logger]


def access_lines(server: RunningServer, count: int) -> list[dict[str, Any]]:
    """The access lines, when there are `count` of them."""
    wait_until(lambda: len(lines(server, "cnnserve.access")) >= count, lambda: server.log)
    return lines(server, "cnnserve.access")


@pytest.fixture(scope="module", params=["core", "aio"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("server")
    write_version(folder / "repository" / "tiny" / "1")
    flags = ["--access-log", "--log-format", "json", "--grpc-transport", request.param]
    control = ["--model-control-mode", "explicit", "--load-model", "tiny", "--allow-model-control"]
    with serving(folder / "log", folder / "repository", *flags, *control) as server:
        yield server


def test_a_request_has_one_line(server: RunningServer) -> None:
    before = len(lines(server, "cnnserve.access"))
    with Client(server.address) as client:
        client.classify([picture("left")] * 3, model="tiny")
    (line,) = access_lines(server, before + 1)[before:]
    assert line["level"] == "INFO"
    assert line["method"] == "cnnserve.v1.Classifier/Classify"
    assert (line["model"], line["version"], line["images"], line["status"]) == ("tiny", "1", 3, "OK")
    assert line["from"].startswith("ipv4:127.0.0.1:")
    assert line["request_bytes"] > 3 * len(picture("left"))
    assert line["response_bytes"] > 0
    assert line["total_us"] >= line["compute_us"] + line["queue_us"] > 0
    assert line["total_us"] >= line["preprocess_us"] > 0


def test_known_requests_have_lines_too(server: RunningServer) -> None:
    before = len(lines(server, "cnnserve.access"))
    with Oip(server.address) as oip:
        for number in range(5):
            oip("ModelInfer", tensor(rows(2), id=f"r{number}"))
    found = access_lines(server, before + 5)[before:]
    assert [line["request_id"] for line in found] == [f"r{number}" for number in range(5)]
    assert {(line["method"], line["images"], line["status"]) for line in found} == {
        ("inference.GRPCInferenceService/ModelInfer", 2, "OK")
    }


def test_each_message_of_a_stream_has_a_line(server: RunningServer) -> None:
    before = len(lines(server, "cnnserve.access"))

    def streamed() -> list[dict[str, Any]]:
        found = lines(server, "cnnserve.access")[before:]
        return [line for line in found if line["method"] == "cnnserve.v1.Classifier/ClassifyStream"]

    with Client(server.address) as client:
        assert len(list(client.classify_many([picture("left")] * 20, model="tiny"))) == 20
    wait_until(lambda: sum(line["images"] for line in streamed()) >= 20, lambda: server.log)
    # The model takes 8 images at once.
    assert len(streamed()) >= 3
    assert {(line["model"], line["version"], line["status"]) for line in streamed()} == {("tiny", "1", "OK")}
    assert len({line["request_id"] for line in streamed()}) == len(streamed())


def test_http_has_the_same_lines(server: RunningServer) -> None:
    before = len(lines(server, "cnnserve.access"))
    url = f"http://127.0.0.1:{server.http_port}/v2/models"
    values = {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 8, 8, 1], "data": [0] * 64}]}
    headers = {"X-Request-Id": "mine 1"}
    assert httpx.post(f"{url}/tiny/infer", json=values, headers=headers, timeout=HANG_S).status_code == 200
    assert httpx.post(f"{url}/unknown/infer", json=values, timeout=HANG_S).status_code == 404
    good, bad = access_lines(server, before + 2)[before:]
    assert (good["model"], good["images"], good["status"], good["request_id"]) == ("tiny", 1, "OK", "mine 1")
    assert (bad["model"], bad["images"], bad["status"]) == ("unknown", 0, "NOT_FOUND")


def test_names_cannot_forge_lines(server: RunningServer) -> None:
    before = len(lines(server, "cnnserve.access"))
    with Oip(server.address) as oip:
        oip.fails("ModelInfer", tensor(rows(1), model=_HOSTILE, id=_HOSTILE))
    (line,) = access_lines(server, before + 1)[before:]
    assert line["model"] == line["request_id"] == _HOSTILE
    assert line["status"] == "NOT_FOUND"
    assert "\x1b" not in server.log


def test_probes_have_no_lines(server: RunningServer) -> None:
    before = len(lines(server, "cnnserve.access"))
    with Client(server.address) as client, Oip(server.address) as oip:
        oip("ServerReady", o.ServerReadyRequest())
        oip("ModelReady", o.ModelReadyRequest(name="tiny"))
        client.get_model("tiny")
    found = access_lines(server, before + 1)[before:]
    assert [line["method"] for line in found] == ["cnnserve.v1.Classifier/GetModel"]


def test_administrators_leave_audit_lines(server: RunningServer) -> None:
    before = len(lines(server, "cnnserve.audit"))
    with Client(server.address) as client:
        client.load_model("tiny")
        with pytest.raises(CnnserveError):
            client.load_model("a b'c\nd")
    wait_until(lambda: len(lines(server, "cnnserve.audit")) >= before + 2)
    good, bad = (line["message"] for line in lines(server, "cnnserve.audit")[before:])
    assert good.startswith("admin: who='-' what='cnnserve.v1.Classifier/LoadModel tiny' from=ipv4:127.0.0.1:")
    assert good.endswith(" outcome=OK")
    assert r"""what="cnnserve.v1.Classifier/LoadModel a b'c\nd" from=""" in bad
    assert bad.endswith(" outcome=NOT_FOUND")


def test_by_default_no_request_has_a_line(tiny_server: RunningServer) -> None:
    before = tiny_server.log
    with Client(tiny_server.address) as client:
        client.classify([picture("left")], model="tiny")
        with pytest.raises(CnnserveError):
            client.classify([picture("left")], model="unknown")
    assert tiny_server.log == before


def test_a_sample_has_about_its_share(tmp_path: Path) -> None:
    write_version(tmp_path / "repository" / "tiny" / "1")
    flags = ["--access-log", "--access-log-sample", "0.25"]
    with serving(tmp_path / "log", tmp_path / "repository", *flags) as server:
        with Oip(server.address) as oip:
            for _ in range(400):
                oip("ModelInfer", tensor(rows(1)))
        assert server.terminate() == 0
        found = [line for line in server.log.splitlines() if " cnnserve.access: " in line]
    # Fewer than 50 or more than 160 of 400 come once in a billion runs.
    assert 50 <= len(found) <= 160
    assert all(" model=tiny version=1 images=1 status=OK " in line for line in found)


@pytest.mark.parametrize("transport", ["core", "aio"])
def test_lines_name_the_client_that_has_shown_who_it_is(tmp_path: Path, transport: str) -> None:
    write_version(tmp_path / "repository" / "tiny" / "1")
    digest = hashlib.sha256(b"secret").hexdigest()
    (tmp_path / "tokens").write_text(f"web infer,read,admin {digest}\n")
    flags = ["--access-log", "--tokens-file", str(tmp_path / "tokens"), "--grpc-transport", transport]
    control = ["--model-control-mode", "explicit", "--load-model", "tiny", "--allow-model-control"]
    with serving(tmp_path / "log", tmp_path / "repository", *flags, *control) as server:
        with Client(server.address, token="secret") as client:
            client.classify([picture("left")], model="tiny")
            client.load_model("tiny")
        url = f"http://127.0.0.1:{server.http_port}/v2/models/tiny/config"
        httpx.get(url, headers={"Authorization": "Bearer secret"}, timeout=HANG_S).raise_for_status()
        wait_until(lambda: "ModelConfig" in server.log, lambda: server.log)
    found = [line for line in server.log.splitlines() if " cnnserve.access: " in line]
    assert len(found) == 3
    assert all(' who="token web" from=ipv4:127.0.0.1:' in line for line in found)
    assert "cnnserve.audit: admin: who='token web' what='cnnserve.v1.Classifier/LoadModel tiny'" in server.log
    assert "secret" not in server.log


def test_a_registration_of_shared_memory_leaves_an_audit_line(tmp_path: Path) -> None:
    write_version(tmp_path / "repository" / "tiny" / "1")
    with serving(tmp_path / "log", tmp_path / "repository", "--shared-memory-prefix", "cnnserve-test") as server:
        with Oip(server.address) as oip:
            oip.fails("SystemSharedMemoryRegister", o.SystemSharedMemoryRegisterRequest(name="r", key="cnnserve-test"))
        wait_until(lambda: " cnnserve.audit: admin: who='-' what='" in server.log, lambda: server.log)
    assert "what='inference.GRPCInferenceService/SystemSharedMemoryRegister r'" in server.log


@pytest.mark.parametrize(
    ("message_id", "header", "expected"), [("r7", "h", "r7"), ("", "h 8", "h 8"), ("", "", r"[0-9a-f]{16}")]
)
async def test_an_error_has_the_id_of_its_request(
    message_id: str, header: str, expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(_: object, __: CallContext) -> NoReturn:
        raise ValueError("stray")

    handler = Observer().unary("S/M", broken)
    with pytest.raises(ValueError, match="stray") as failed:
        await handler(o.ModelInferRequest(id=message_id), CallContext(request_id=header))
    status.of(failed.value, "S/M")
    assert re.fullmatch(expected, vars(caplog.records[-1])[REQUEST]["request_id"])


def record(message: object, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("cnnserve.x", logging.INFO, "", 0, message, (), None)
    vars(made).update(extra)
    return made


def test_fields_are_quoted_where_they_need_it() -> None:
    fields = Fields(from_="ipv4:127.0.0.1:1", model=_HOSTILE, images=3, version="")
    text = Formatter("%(message)s").format(record(fields))
    assert text == (
        'from=ipv4:127.0.0.1:1 model="x status=OK\\n2026-01-01 INFO forged: \\"\\u001b[2J" images=3 version=""'
    )
    line = JsonFormatter().format(record(fields))
    assert json.loads(line).items() >= {"from": "ipv4:127.0.0.1:1", "model": _HOSTILE, "images": 3}.items()


def test_json_lines_have_their_request_and_their_exception() -> None:
    try:
        raise ValueError("\u2028\x9b")
    except ValueError as error:
        made = record("failed", request_ids={"request_id": "a b"})
        made.exc_info = (ValueError, error, error.__traceback__)
    line = JsonFormatter().format(made)
    assert len(line.splitlines()) == 1
    document = json.loads(line)
    assert (document["message"], document["request_id"], document["level"]) == ("failed", "a b", "INFO")
    assert document["exception"].endswith("ValueError: \u2028\x9b")
    assert document["time"].endswith("+00:00")
    assert (
        Formatter("%(message)s").format(record("failed", request_ids={"request_id": "a b"}))
        == 'failed request_id="a b"'
    )


def test_a_message_that_is_no_request_has_no_request_id() -> None:
    assert Formatter("%(message)s").format(record("started")) == "started"
    assert "request_id" not in json.loads(JsonFormatter().format(record("started")))
