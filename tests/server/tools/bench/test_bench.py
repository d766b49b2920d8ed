"""`cnnserve bench` on real servers."""

import json
import re
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

import pytest

from cnnserve.tools.bench.cli import bench
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
    ],
)
def test_what_cannot_be_measured_is_named(
    tiny_server: RunningServer, capsys: pytest.CaptureFixture[str], arguments: Sequence[str], text: str
) -> None:
    assert bench(["--address", tiny_server.address, *SHORT, *arguments]) == 1
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--plot", "a.pdf"],
        ["--rate", "fast"],
        ["--rate", "0,5"],
        ["--concurrency", "1,x"],
        ["--seconds", "0"],
        ["--images", "a", "--batch", "2", "--transport", "http"],
    ],
)
def test_wrong_usage(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        bench(list(arguments))
    assert ended.value.code == 2
    assert arguments[0] in capsys.readouterr().err


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
    assert "the load ended early: " in err or "connection lost" in out
    assert "most: " in out
