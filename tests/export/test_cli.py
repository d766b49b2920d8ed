import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cnnserve.images.preprocessing import Preprocessor
from cnnserve.repository import manifest as manifests
from cnnserve.runtime.session import Session
from cnnserve_export import checkpoints, cli, flags, labels
from cnnserve_export.architectures import ARCHITECTURES
from cnnserve_export.cli import export, import_onnx, train_lenet


def manifest_of(folder: Path) -> manifests.Manifest:
    manifest = manifests.read(folder)
    assert manifest is not None
    manifests.verify_files(manifest, folder)
    return manifest


def test_lenet5_from_random_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(["lenet5", "--repository", str(tmp_path / "models")]) == 0
    out, err = capsys.readouterr()
    folder = tmp_path / "models" / "lenet5" / "1"
    assert out == f"{folder}\n"
    assert [line.split()[0] for line in err.splitlines()] == [
        "build",
        "weights",
        "check",
        "convert",
        "verify",
        "publish",
    ]
    assert "random, seed 0" in err
    assert "at batch 1," in err
    assert "at batch 32 (tolerance" in err
    manifest = manifest_of(folder)
    assert manifest.weights == {"source": "random", "seed": "0"}
    assert (manifest.architecture, manifest.parameters, manifest.labels) == ("lenet5", 61_706, None)


def test_resnet18_from_a_checkpoint_with_labels(tmp_path: Path) -> None:
    network = checkpoints.build(ARCHITECTURES["resnet18"], 3, seed=4)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    (tmp_path / "names.txt").write_bytes(b"\xef\xbb\xbfcat\r\ndog\r\nbird\r\n")
    flags = f"--weights {tmp_path}/w.pth --labels {tmp_path}/names.txt --num-classes 3 --name pets --version 5"
    flags += f" --repository {tmp_path}/models --input float32 --max-batch-size 4"
    assert export(["resnet18", *flags.split()]) == 0
    folder = tmp_path / "models" / "pets" / "5"
    manifest = manifest_of(folder)
    assert list(manifest.parity.batches) == ["1", "2", "3", "4"]
    assert manifest.weights["file"] == "w.pth"
    assert (manifest.input.datatype, manifest.input.layout, manifest.preprocessing.normalize) == (
        "FP32",
        "NCHW",
        "host",
    )
    assert (folder / "labels.txt").read_bytes() == b"cat\ndog\nbird\n"
    row = Preprocessor(manifest.preprocessing, manifest.input).encoded((folder / "golden.png").read_bytes())
    with torch.inference_mode():
        expected = network(torch.from_numpy(row)[None]).softmax(dim=1).numpy()
    np.testing.assert_allclose(Session(folder / "model.onnx").run(row[None])[0], expected, atol=1e-5)


def test_train_lenet_publishes_and_saves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = f"--repository {tmp_path}/models --name digits --epochs 1 --save-weights {tmp_path}/lenet.pth"
    assert train_lenet(flags.split()) == 0
    assert "on the held-out digits" in capsys.readouterr().err
    manifest = manifest_of(tmp_path / "models" / "digits" / "1")
    assert (manifest.weights["source"], manifest.weights["epochs"]) == ("trained", "1")
    assert (tmp_path / "models/digits/labels.txt").read_text().split() == list("0123456789")
    loaded = checkpoints.build(ARCHITECTURES["lenet5"], 10)
    checkpoints.load(loaded, tmp_path / "lenet.pth")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("lenet6", "no architecture 'lenet6'; choose one of lenet5, alexnet"),
        ("lenet5 --weights none.pth", r"none.pth cannot be read"),
        ("lenet5 --weights imagenet", "no published ImageNet weights for lenet5"),
        ("lenet5 --labels none.txt", r"none.txt cannot be read"),
        ("lenet5 --golden none.png", r"none.png cannot be read"),
        ("lenet5 --name a/b", "'a/b' is not a model name"),
        ("lenet5 --transform-input", "is for googlenet only"),
        ("lenet5 --repository file", "error: file is a file, expected a folder"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    flags: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert export(flags.split()) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1].startswith("error: ")
    assert message in err
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_an_interruption_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(arguments: object) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_export", interrupted)
    assert export(["lenet5"]) == 130
    assert capsys.readouterr().err == "interrupted; nothing was published\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--version 0", "0 is too small; give at least 1"),
        ("--version one", "argument --version: 'one' is not a whole number of at least 1"),
        ("--min-agreement most", "argument --min-agreement: 'most' is not a number from 0 to 1"),
        ("--min-agreement nan", "nan is not within 0 and 1"),
        ("--shape 3,x,8", "argument --shape: '3,x,8' is not C,H,W, without the batch"),
        ("--shape 3,0,8", "argument --shape: 0 is too small; give at least 1"),
        ("--input int8", "invalid choice: 'int8'"),
        ("--opset 9", "invalid choice: 9"),
        ("--max-batch-size 1025", "1025 is too large; the largest batch is 1024"),
    ],
)
def test_wrong_flags_are_refused(flags: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        export(["lenet5", *flags.split()])
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.endswith(" (see cnnserve export --help)\n")
    assert err.count("\n") == 1


@pytest.mark.parametrize("flag", ["--repository", "--weights", "--labels", "--golden", "--calibration"])
def test_a_path_that_is_not_utf8_is_told_at_once(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        export(["lenet5", flag, os.fsdecode(b"mod\xe8les/\xc3\xa9")])
    assert f"argument {flag}: the path mod\\xe8les/é is not UTF-8; rename it" in capsys.readouterr().err


@pytest.mark.parametrize("parser", [flags.export_parser, flags.import_parser])
def test_imagenet_names_the_built_in_labels(
    parser: Callable[[], argparse.ArgumentParser], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # Data sets are often kept in a folder of this name, and a folder is no label file.
    Path("imagenet").mkdir()
    path = parser().parse_args(["resnet18", "--labels", "imagenet"]).labels
    names = labels.read(path, 1000)
    assert (names[0], names[698], names[967], names[-1]) == ("tench", "palace", "espresso", "toilet tissue")
    assert parser().parse_args(["resnet18", "--labels", "./imagenet"]).labels == Path("imagenet")


@pytest.mark.parametrize("command", [export, import_onnx])
def test_a_file_called_imagenet_needs_its_path(
    command: Callable[[list[str]], int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("imagenet").write_text("cat\ndog\n")
    with pytest.raises(SystemExit) as caught:
        command(["lenet5", "--labels", "imagenet"])
    assert caught.value.code == 2
    assert (
        "argument --labels: 'imagenet' names the built-in list of ImageNet labels, but the current folder holds a file "
        "'imagenet', too; write ./imagenet for the file, or rename it" in capsys.readouterr().err
    )
    named = flags.export_parser().parse_args(["lenet5", "--labels", "./imagenet"]).labels
    assert labels.read(named, 2) == ("cat", "dog")


@pytest.mark.parametrize("own", [[], ["--num-classes", "10"]])
def test_imagenet_labels_need_a_network_with_as_many_classes(
    own: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "lenet5",
        *own,
        "--labels",
        "imagenet",
        "--max-batch-size",
        "1",
        "--repository",
        str(tmp_path / "models"),
    ]
    assert export(command) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: the built-in list of ImageNet labels has 1000 labels, the network has 10 classes; give the "
        "network's 10 labels as --labels FILE"
    )
    assert not (tmp_path / "models").exists()


def test_a_file_to_import_that_is_not_named_in_utf8(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        import_onnx([os.fsdecode(b"mod\xe8le.onnx")])
    assert "argument FILE: the path mod\\xe8le.onnx is not UTF-8" in capsys.readouterr().err


def test_help_names_every_architecture_without_torch() -> None:
    code = "import sys; from cnnserve_export.cli import export\ntry: export(['--help'])\nfinally: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    text, modules = done.stdout.rsplit("\n", 2)[0], done.stdout.splitlines()[-1].split()
    assert all(name in text for name in ARCHITECTURES)
    assert not {"torch", "onnx", "onnxruntime", "numpy"} & set(modules)
