"""`cnnserve bench` on real servers."""

import hashlib
import json
import re
import signal
import socket
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

import pytest

from certificates import Authority, flags
from cnnserve.tools.bench import report, running
from cnnserve.tools.bench.cells import Cell
from cnnserve.tools.bench.cli import bench
from cnnserve.tools.bench.serving import serving as serving_for_a_run
from cnnserve.tools.bench.target import Target, is_here
from support import HANG_S, RunningServer, picture, serving, write_version

SHORT = ["--seconds", "0.3", "--concurrency", "1,4", "--rate", "5%", "--no-plain"]


def measured(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, object]:
    status = bench([*map(str, arguments), "--json"])
    said = capsys.readouterr()
    assert status == 0, said.err
    result = json.loads(said.out)
    assert isinstance(result, dict)
    return result


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for kind in ("dark", "left", "bright"):
        (folder / f"{kind}.png").write_bytes(picture(kind))
    return folder


@pytest.mark.parametrize("transport", ["grpc", "stream", "http"])
@pytest.mark.parametrize("sent", ["tensors", "images"])
def test_each_transport(
    tiny_server: RunningServer, images: Path, capsys: pytest.CaptureFixture[str], transport: str, sent: str
) -> None:
    flags = ["--transport", transport, *(["--images", str(images)] if sent == "images" else ["--batch", "3"])]
    where = ["--address", tiny_server.address, "--http-address", f"127.0.0.1:{tiny_server.http_port}"]
    result = measured(capsys, "tiny", *where, *flags, *SHORT)
    cells = result["cells"]
    assert isinstance(cells, list)
    assert [cell["load"] for cell in cells[:2]] == ["1 in flight", "4 in flight"]
    assert cells[2]["rate"] == pytest.approx(max(cell["requests_per_s"] for cell in cells[:2]) / 20)
    for cell in cells:
        assert cell["failed"] == {}
        assert cell["requests"] > 0
        assert 0 < cell["p50_ms"] <= cell["p90_ms"] <= cell["p99_ms"] <= cell["max_ms"]
        assert cell["images_per_s"] == cell["requests_per_s"] * (3 if sent == "tensors" else 1)
        assert cell["mean_batch"] >= (3 if sent == "tensors" else 1)
    assert result["knee"] in ("1 in flight", "4 in flight")
    assert result["plain_unknown"] == "--no-plain"


def test_unreadable_images_are_named_and_left_out(
    tiny_server: RunningServer, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "broken.png").write_bytes(b"no image")
    flags = ["--address", tiny_server.address, "--images", str(images), "--concurrency", "1", "--rate", "0"]
    assert bench(["tiny", *flags, "--seconds", "0.1"]) == 0
    said = capsys.readouterr()
    assert "broken.png: " in said.err
    assert "1 files are left out, 3 are sent in turn" in said.err
    assert "share of plain ONNX Runtime: unknown" in said.out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nobody"], "nobody"),
        (["tiny", "--version", "9"], "has no version 9"),
        (["tiny", "--images", "/nowhere/at/all"], "none of the 1 files of --images can be sent"),
        (["tiny", "--batch", "5000"], "5000"),
        (["tiny", "--address", "127.0.0.1:1,127.0.0.1:2"], "bench loads one server"),
        (["tiny", "--transport", "http", "--http-address", "127.0.0.1:1"], "name the server's HTTP port with --http-"),
        (["tiny", "--transport", "http", "--http-address", "GRPC"], "does not answer requests over HTTP"),
        (["tiny", "--images", "IMAGES", "--batch", "5000"], "5000"),
        (["tiny", "--plot", "/nowhere/a.svg"], "--plot /nowhere/a.svg: this file cannot be written"),
    ],
)
def test_what_cannot_be_measured_is_named(
    tiny_server: RunningServer, images: Path, capsys: pytest.CaptureFixture[str], arguments: Sequence[str], text: str
) -> None:
    places = {"IMAGES": str(images), "GRPC": tiny_server.address}
    words = [places.get(word, word) for word in arguments]
    assert bench(["--address", tiny_server.address, *SHORT, *words]) == 1
    said = capsys.readouterr()
    assert text in said.err
    assert "in flight" not in said.out


def test_a_server_on_this_machine_over_tls_with_a_token_and_several_load_processes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "_PLAIN_S", 0.01)
    write_version(tmp_path / "models" / "tiny" / "1")
    authority = Authority(tmp_path / "certificates")
    own = authority.issue("client", common_name="client")
    (tmp_path / "tokens").write_text(f"load infer,read {hashlib.sha256(b'secret').hexdigest()}\n")
    (tmp_path / "token").write_text("secret")
    secured = flags(authority.issue("server"), authority.root)
    with serving(tmp_path / "log", tmp_path / "models", "--tokens-file", tmp_path / "tokens", *secured) as server:
        where = ["--address", server.address, "--http-address", f"127.0.0.1:{server.http_port}"]
        where += ["--root-certificates", authority.root, "--certificate", own.certificate, "--key", own.key]
        loads = ["--processes", "2", "--concurrency", "3", "--rate", "50", "--seconds", "0.2", "--transport", "http"]
        more = ["--token-file", tmp_path / "token", "--repository", tmp_path / "models"]
        result = measured(capsys, *where, *loads, *more)
    cells = result["cells"]
    assert isinstance(cells, list)
    assert [(cell["processes"], cell["failed"]) for cell in cells] == [(2, {}), (2, {})]
    assert all(cell["mean_batch"] >= 1 for cell in cells)
    assert isinstance(result["share_of_plain"], float)


def test_the_share_is_that_of_this_machine_only() -> None:
    assert is_here("127.0.0.1:8001")
    assert is_here("localhost:1")
    assert not is_here("192.0.2.1:8001")  # kept for documentation


def test_a_server_that_is_silent_does_not_tell_its_batches() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        target = Target(address, address, "tiny", "", "", tls=False, files=(None, None, None))
        assert target.batches(0.1) is None


def test_ctrl_c_leaves_what_was_measured(
    tiny_server: RunningServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = report.row

    def row(cell: Cell) -> str:
        signal.raise_signal(signal.SIGINT)
        return write(cell)

    monkeypatch.setattr(report, "row", row)
    words = ["--address", tiny_server.address, "--seconds", "0.1", "--concurrency", "1,2", "--no-plain", "--json"]
    assert bench(["tiny", *words]) == 130
    said = capsys.readouterr()
    assert [cell["load"] for cell in json.loads(said.out)["cells"]] == ["1 in flight"]
    assert "interrupted" in said.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--plot", "a.pdf"],
        ["--rate", "fast"],
        ["--rate", "0,5"],
        ["--concurrency", "1,x"],
        ["--seconds", "0"],
        ["--images", "a", "--batch", "2", "--transport", "http"],
        ["--concurrency", "0"],
        ["--concurrency", "0", "--rate", "0"],
        ["--processes", "101"],
        ["--repository", "a", "--tls"],
    ],
)
def test_wrong_usage(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        bench(list(arguments))
    assert ended.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_a_server_of_its_own_does_not_outlive_the_run(tmp_path: Path) -> None:
    write_version(tmp_path / "models" / "tiny" / "1")
    with pytest.raises(SystemExit) as ended, serving_for_a_run(tmp_path / "models", "tiny") as started:
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 143
    assert not Path(f"/proc/{started.pids[0]}").exists()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.fixture(scope="module")
def run_of_its_own_server(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Output and picture of a run that starts its server."""
    folder = tmp_path_factory.mktemp("own")
    write_version(folder / "models" / "tiny" / "1")
    picture_file = folder / "run.html"
    command = [sys.executable, "-m", "cnnserve", "bench", "--repository", str(folder / "models")]
    command += ["--seconds", "0.3", "--concurrency", "1,2", "--rate", "100", "--plot", str(picture_file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, picture_file


def test_a_server_of_its_own_is_compared_with_plain_onnx_runtime(run_of_its_own_server: tuple[str, Path]) -> None:
    said = run_of_its_own_server[0]
    assert re.search(r"^100\.?0*/s +\d", said, re.MULTILINE), said
    assert re.search(r"share of plain ONNX Runtime: 0\.\d\d of [\d,.]+ images/s", said)


def test_the_page_is_one_file_without_other_sources(run_of_its_own_server: tuple[str, Path]) -> None:
    page = run_of_its_own_server[1].read_text()
    drawing = ET.fromstring(page[page.index("<svg") : page.index("</svg>") + 6])
    assert drawing.tag.endswith("svg")
    assert not re.search(r"<script|(?:src|href)=\"(?!#)", page)
    assert "knee: " in page


def test_a_server_that_goes_away_leaves_the_report_of_what_was_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_version(tmp_path / "models" / "tiny" / "1")
    with serving(tmp_path / "log", tmp_path / "models") as server:
        command = [sys.executable, "-m", "cnnserve", "bench", "tiny", "--address", server.address, "--rate", "0"]
        command += ["--seconds", "0.3", "--concurrency", "1,2,3,4", "--timeout-s", "1"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("1 in flight"):
                    server.process.send_signal(signal.SIGKILL)
                    break
            out, err = process.communicate(timeout=HANG_S)
    assert process.returncode == 1
    assert f"the load ended early: cannot connect to {server.address}" in err or "connection lost" in out
    assert "most: " in out
