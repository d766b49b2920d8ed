"""`cnnserve tune` on a real model, and what it says to input that is none."""

import itertools
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree as ET

import pytest

from cnnserve.cli import main
from cnnserve.model_config import execution, pbtxt
from cnnserve.repository.folders import model_folder
from cnnserve.tools.tuning import cli
from cnnserve.tools.tuning.cli import tune
from cnnserve.tools.tuning.writing import MARK
from support import REPOSITORY, open_version


@pytest.fixture
def lenet5(tmp_path: Path) -> Path:
    return shutil.copytree(REPOSITORY / "lenet5", tmp_path / "lenet5")


def slow_down(config: Path) -> None:
    """Makes each batch wait for longer than any run takes, so that every other layout is better."""
    slow = "dynamic_batching { max_queue_delay_microseconds: 50000 }\n# ours\ninstance_group { count: 1 }\n"
    config.write_text(config.read_text().replace("dynamic_batching {}\n", slow))


def refusal(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert tune([str(word) for word in words]) == 1
    said = capsys.readouterr()
    assert said.err.count("\n") == 1, said.err
    return said.err


def test_the_best_layout_is_written_and_loads(lenet5: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, picture = lenet5 / "config.pbtxt", tmp_path / "layouts.svg"
    slow_down(config)
    before = config.read_text()
    assert main(["tune", str(lenet5), "--budget", "3s", "--cpu-threads", "2", "--plot", str(picture)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^ +\d+ +\d+ +\d+ .*best", said, re.MULTILINE)
    assert "frontier" in said
    text = config.read_text()
    assert f"written to {config}" in said
    assert text.startswith(before.partition("dynamic_batching")[0])
    assert "# ours" in text
    assert text.count(MARK) == 3
    chosen = execution.read(pbtxt.read(lenet5))
    opened = open_version(model_folder(lenet5), 1)
    assert len(opened.instances) == chosen.cpu_instances
    assert ET.fromstring(picture.read_text()).tag.endswith("svg")


def test_a_signed_folder_keeps_its_config(lenet5: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = lenet5 / "config.pbtxt"
    slow_down(config)
    (lenet5 / "model.sig").write_text("{}")
    before = config.read_bytes()
    assert tune([str(lenet5), "--budget", "2s", "--cpu-threads", "1"]) == 0
    said = capsys.readouterr().out
    assert "stays as it is, because the folder is signed; the lines are" in said
    assert f"\n{MARK}" in said
    assert "\ninstance_group { kind: KIND_CPU count: 1 }\n" in said
    assert config.read_bytes() == before


def test_a_model_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere is not a folder; give the folder of a model" in refusal(capsys, tmp_path / "nowhere")


def test_a_repository_in_place_of_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert f"is a model repository; give the folder of one model, such as {REPOSITORY / 'lenet5'}" in refusal(
        capsys, REPOSITORY
    )


def test_a_folder_without_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "holds no model folder" in refusal(capsys, tmp_path)


def test_a_model_that_does_not_load(lenet5: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (lenet5 / "1" / "model.onnx").write_bytes(b"nothing")
    assert "model.onnx" in refusal(capsys, lenet5)


def test_a_config_that_is_wrong(lenet5: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (lenet5 / "config.pbtxt").write_text("max_batch_size: many")
    assert "config.pbtxt line 1" in refusal(capsys, lenet5)


def test_a_model_for_a_gpu(lenet5: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (lenet5 / "config.pbtxt").write_text("instance_group { kind: KIND_GPU }")
    assert "this one runs on a GPU" in refusal(capsys, lenet5)


def test_a_budget_that_is_too_small(lenet5: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--budget is 0.5 s, expected at least 2 s" in refusal(capsys, lenet5, "--budget", "500ms")


def test_a_budget_that_one_measurement_uses_up(
    lenet5: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Each look at the clock is 3 s later than the one before.
    monkeypatch.setattr(cli, "time", SimpleNamespace(monotonic=itertools.count(0.0, 3.0).__next__))
    assert tune([str(lenet5), "--budget", "2s", "--cpu-threads", "1"]) == 1
    assert "--budget is 2 s, which is enough for one layout only (3.0 s); give more" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["50", "fast", "0ms", "-1s", "nans"])
def test_a_target_without_a_unit(lenet5: Path, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        tune([str(lenet5), f"--target-p99={value}"])
    assert "expected a number with a unit, such as 50ms" in capsys.readouterr().err
