"""What a new version takes from the newest version of the same model, if neither flags nor weights say it."""

import json
from pathlib import Path

import numpy as np
import pytest

import published_networks
from cnnserve.repository import manifest as manifests
from cnnserve.repository.manifest import Manifest, Resize
from cnnserve_export import previous
from cnnserve_export.cli import export, import_onnx
from foreign_networks import onnx_file
from support import golden_rows

FLAGS = "--shape 3,16,16 --mean 0.4,0.5,0.6 --std 0.2,0.3,0.4 --resize 20 --crop 16 --interpolation bicubic"
FEW = ["--max-batch-size", "2"]
NAMES = ("ant", "bee", "cat", "dog", "eel")


@pytest.fixture(autouse=True)
def labelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("names.txt").write_text("\n".join(NAMES) + "\n")


def published(version: int, model: str = "m") -> tuple[Manifest, str]:
    """Returns the manifest of a version and the text of its label file."""
    folder = Path("models") / model / str(version)
    manifest = manifests.read(folder)
    assert manifest is not None
    return manifest, (folder / manifest.labels).read_text() if manifest.labels else ""


def make(*flags: str, network: str = "view") -> int:
    return export([f"published_networks:{network}", "--name", "m", *FEW, *flags])


def test_labels_and_preprocessing_stay(capsys: pytest.CaptureFixture[str]) -> None:
    """As in the recipe for int8: the same weights again, in another precision."""
    assert make(*FLAGS.split(), "--labels", "names.txt") == 0
    assert "taken from version" not in capsys.readouterr().err
    assert make("--precision", "fp16") == 0
    assert "; taken from version 1: labels, preprocessing" in capsys.readouterr().err
    (first, names), (second, again) = published(1), published(2)
    assert (names, second.preprocessing) == (again, first.preprocessing)
    assert names.split() == list(NAMES)


def test_flags_and_preprocessing_files_win(capsys: pytest.CaptureFixture[str]) -> None:
    assert make(*FLAGS.split(), "--labels", "names.txt") == 0
    Path("others.txt").write_text("f\ng\nh\ni\nj\n")
    assert make("--labels", "others.txt", "--resize", "18") == 0
    assert "; taken from version 1: preprocessing" in capsys.readouterr().err
    second, names = published(2)
    assert names.split() == ["f", "g", "h", "i", "j"]
    # The flag changes the resize; all else is that of version 1.
    assert second.preprocessing.resize == Resize("shorter", (18,), "bicubic")
    assert second.preprocessing.mean == (0.4, 0.5, 0.6)
    config = {"input_size": [3, 16, 16], "crop_pct": 1.0, "interpolation": "bilinear", "mean": [0] * 3, "std": [1] * 3}
    Path("timm.json").write_text(json.dumps(config))
    assert make("--preprocessing", "timm.json") == 0
    assert "; taken from version 2: labels\n" in capsys.readouterr().err
    third, names = published(3)
    assert third.preprocessing.mean == (0, 0, 0)
    assert names.split() == ["f", "g", "h", "i", "j"]


def test_an_added_sigmoid_is_added_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert make(*FLAGS.split(), "--activation", "sigmoid") == 0
    assert make() == 0
    assert "; taken from version 1: preprocessing, --activation sigmoid" in capsys.readouterr().err
    np.testing.assert_allclose(golden_rows(Path("models/m/1")), golden_rows(Path("models/m/2")), atol=1e-6)
    assert make("--activation", "softmax") == 0
    assert published(3)[0].activation == "softmax"


def test_only_an_intact_version_of_the_same_architecture_counts() -> None:
    assert make(*FLAGS.split(), "--labels", "names.txt") == 0
    repository = Path("models")
    found = previous.newest(repository, "m", "published_networks:view")
    assert found is not None
    assert (found.version, found.labels, found.activation) == (1, NAMES, "auto")
    assert previous.newest(repository, "m", "published_networks:norm") is None
    assert previous.newest(repository, "none", "published_networks:view") is None
    Path("models/m/2").mkdir()
    Path("models/m/2/manifest.json").write_text("{}")
    assert previous.newest(repository, "m", "published_networks:view") == found
    Path("models/m/1/labels.txt").write_text("altered\n")
    assert previous.newest(repository, "m", "published_networks:view") is None


def test_another_number_of_classes_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert export(["lenet5", "--name", "m", *FEW]) == 0
    assert export(["lenet5", "--name", "m", *FEW, "--num-classes", "7"]) == 1
    assert "and 10 classes, this version has" in capsys.readouterr().err


def test_imports_take_them_too(capsys: pytest.CaptureFixture[str]) -> None:
    path = onnx_file(Path("m.onnx"), published_networks.view().eval(), example=None)
    flags = [*FLAGS.split()[2:], "--labels", "names.txt", *FEW]
    assert import_onnx([str(path), *flags]) == 0
    assert import_onnx([str(path), *FEW]) == 0
    assert "; taken from version 1: labels, preprocessing" in capsys.readouterr().err
    (first, names), (second, again) = published(1), published(2)
    assert (names, first.preprocessing) == (again, second.preprocessing)
    assert first.labels == second.labels == "labels.txt"
