"""`cnnserve show` on real folders: its output, the altered files that it finds, and its errors."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cnnserve.repository import manifest as manifests
from cnnserve.repository import show_text
from cnnserve.repository.manifest import MANIFEST_FILE, Pad, Parity, Preprocessing, Resize, TensorInfo
from cnnserve.repository.show import show
from support import REPOSITORY, golden_rows, tiny_onnx, write_version

Output = pytest.CaptureFixture[str]
IMAGES = {"name": "photos", "count": 250, "sha256": "ab" * 32}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A model repository: `tiny` with versions 1 and 3, `7` with version 1, `plain` without a manifest."""
    write_version(tmp_path / "tiny" / "1")
    write_version(tmp_path / "tiny" / "3")
    write_version(tmp_path / "7" / "1")
    (tmp_path / "plain" / "2").mkdir(parents=True)
    (tmp_path / "plain" / "2" / "model.onnx").write_bytes(tiny_onnx())
    (tmp_path / ".publish-dead" / "1").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    return tmp_path


def documents(capsys: Output, *arguments: str | Path, code: int = 0) -> list[dict[str, Any]]:
    assert show([str(argument) for argument in (*arguments, "--json")]) == code
    entries: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["versions"]
    return entries


def test_the_trained_lenet5(capsys: Output) -> None:
    assert show([str(REPOSITORY / "lenet5")]) == 0
    out, err = capsys.readouterr()
    lines = dict(line.split("  ", 1) for line in out.splitlines() if line[:1].strip() and "  " in line)
    facts = {name: text.strip() for name, text in lines.items()}
    assert err == ""
    assert out.startswith("lenet5 version 1, ")
    assert facts["state"] == "intact: 13 files match the digests in the manifest"
    assert facts["architecture"] == "lenet5, 61,706 parameters"
    assert facts["precision"] == "fp32, opset 18, IR version 10"
    assert facts["input"] == "image, 28 x 28 x 1 UINT8 NHWC, batches of 1 to 32"
    assert facts["labels"] == "labels.txt, 10: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert facts["weights"] == "trained"
    assert facts["golden images"].startswith("golden.png: '3' with probability 0.9")
    assert "tolerance of a probability 0.0001, of its logarithm 0.001\n" in out
    for text in ("normalised: mean 0.306, standard deviation 0.325, in the graph", "epochs: 30", " at batch 32"):
        assert text in out
    manifest = manifests.read(REPOSITORY / "lenet5" / "1")
    assert manifest
    assert all(file.sha256 in out for file in manifest.files.values())


def test_the_value_column_is_aligned(root: Path, capsys: Output) -> None:
    show([str(root / "tiny" / "1")])
    title, gap, *lines = capsys.readouterr().out.splitlines()
    column = lines[0].index("intact")
    assert title.startswith("tiny version 1, ")
    assert gap == ""
    assert all(line[column - 2 : column] == "  " and line[column] != " " for line in lines if "SHA-256" not in line)


@pytest.mark.parametrize(
    ("path", "flags", "shown"),
    [
        ("tiny", [], [("tiny", 3)]),
        ("tiny", ["--version", "1"], [("tiny", 1)]),
        ("tiny/1", [], [("tiny", 1)]),
        ("tiny/1", ["--version", "1"], [("tiny", 1)]),
        ("tiny/1/../3/", [], [("tiny", 3)]),
        ("7", [], [("7", 1)]),
        ("7/1", [], [("7", 1)]),
        ("plain", [], [("plain", 2)]),
        ("plain/2", [], [("plain", 2)]),
        (".", [], [("7", 1), ("plain", 2), ("tiny", 1), ("tiny", 3)]),
    ],
)
def test_what_a_path_means(path: str, flags: list[str], shown: list[object], root: Path, capsys: Output) -> None:
    entries = documents(capsys, root / path, *flags)
    assert [(entry["model"], entry["version"]) for entry in entries] == shown


def test_a_path_without_a_name(root: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root / "tiny" / "3")
    assert [entry["version"] for entry in documents(capsys, ".")] == [3]
    assert [entry["version"] for entry in documents(capsys, "..")] == [3]
    assert len(documents(capsys, "../..")) == 4


def test_a_repository_is_a_line_per_version(root: Path, capsys: Output) -> None:
    assert show([str(root)]) == 0
    header, *rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert header == ["MODEL", "VERSION", "PARAMS", "PRECISION", "INPUT", "CLASSES", "COMPARED", "STATE"]
    assert [(row[0], row[1], row[-1]) for row in rows] == [
        ("7", "1", "intact"),
        ("plain", "2", "manifest"),
        ("tiny", "1", "intact"),
        ("tiny", "3", "intact"),
    ]


def test_the_documented_keys(root: Path, capsys: Output) -> None:
    (entry,) = documents(capsys, root / "tiny")
    assert list(entry) == [
        "model",
        "version",
        "folder",
        "other_versions",
        "state",
        "problems",
        "warnings",
        "labels",
        "golden",
        "manifest",
    ]
    assert entry["other_versions"] == [1]
    assert entry["labels"] == ["dark", "left", "bright"]
    (golden,) = entry["golden"]
    assert golden == {
        "image": "golden.png",
        "class": 1,
        "label": "left",
        "probability": pytest.approx(golden_rows(root / "tiny" / "3")[0, 1]),
    }
    assert entry["manifest"] == json.loads((root / "tiny" / "3" / MANIFEST_FILE).read_text())


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("model.onnx", tiny_onnx() + b"\0", "file model.onnx has .* bytes, the manifest says"),
        ("labels.txt", b"dark\nleft\nblight\n", "file labels.txt was altered: SHA-256"),
        ("golden.png", None, "file golden.png is missing"),
    ],
)
def test_an_altered_file_is_named(name: str, data: bytes | None, reason: str, root: Path, capsys: Output) -> None:
    path = root / "tiny" / "3" / name
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    assert show([str(root / "tiny")]) == 1
    out, err = capsys.readouterr()
    assert err.startswith(f"error: {root}/tiny/3: file {name} ")
    assert len([line for line in out.splitlines() if "ALTERED" in line and name in line]) == 1
    (entry,) = documents(capsys, root / "tiny", code=1)
    assert entry["state"] == "altered"
    assert list(entry["problems"]) == [name]
    assert documents(capsys, root, code=1)[-1]["state"] == "altered"
    assert documents(capsys, root / "tiny" / "1")[0]["state"] == "intact"


def test_every_altered_file_is_named(root: Path, capsys: Output) -> None:
    for name in ("model.onnx", "golden.png"):
        (root / "tiny" / "3" / name).write_bytes(b"")
    assert list(documents(capsys, root / "tiny", code=1)[0]["problems"]) == ["model.onnx", "golden.png"]


def test_a_precision_that_the_graph_does_not_have_is_told(root: Path, capsys: Output) -> None:
    folder = root / "tiny" / "3"
    raw = json.loads((folder / MANIFEST_FILE).read_text())
    (folder / MANIFEST_FILE).write_text(json.dumps(raw | {"onnx": raw["onnx"] | {"precision": "fp16"}}))
    (entry,) = documents(capsys, root / "tiny", code=1)
    assert entry["state"] == "broken manifest"
    assert entry["problems"] == {MANIFEST_FILE: "onnx.precision is fp16, but the graph computes in fp32"}
    assert show([str(root / "tiny")]) == 1
    assert "state           broken manifest: onnx.precision is fp16" in capsys.readouterr().out


def test_a_version_in_the_wrong_place_is_told(root: Path, capsys: Output) -> None:
    shutil.copytree(root / "tiny" / "3", root / "plain" / "4")
    assert show([str(root / "plain")]) == 1
    said = "manifest.json is that of model tiny version 3, but the folder is that of model plain version 4"
    out, err = capsys.readouterr()
    assert f"state           wrong place: {said}" in out
    assert err.startswith(f"error: {root}/plain/4: {said}")
    assert "cnnserve copy PATH TO" in err
    (entry,) = documents(capsys, root / "plain", code=1)
    assert (entry["state"], list(entry["problems"])) == ("wrong place", [MANIFEST_FILE])
    (root / "plain" / "4" / "labels.txt").write_text("a\nb\nc\n")
    (entry,) = documents(capsys, root / "plain", code=1)
    assert (entry["state"], list(entry["problems"])) == ("altered", ["labels.txt", MANIFEST_FILE])


def test_an_old_contract_is_told(capsys: Output) -> None:
    folder = Path(__file__).parents[2] / "trust" / "schema1" / "lenet5"
    assert show([str(folder)]) == 0
    out = capsys.readouterr().out
    assert (
        "contract       1: one golden image, logarithms of probabilities are not compared; see cnnserve upgrade\n"
        in out
    )
    assert "golden images  golden.png: '3' with probability 0.9708\n" in out
    assert show([str(folder.parent)]) == 0
    assert capsys.readouterr().out.splitlines()[1].endswith("  intact, contract 1")
    (entry,) = documents(capsys, folder)
    assert (entry["manifest"]["schema"], entry["manifest"]["golden"]["log_tolerance"]) == (1, None)


def test_a_version_without_a_manifest_is_shown_as_such(root: Path, capsys: Output) -> None:
    assert show([str(root / "plain")]) == 0
    assert "no manifest: nothing is known about this version" in capsys.readouterr().out


def test_a_broken_manifest_is_told(root: Path, capsys: Output) -> None:
    (root / "tiny" / "3" / MANIFEST_FILE).write_text('{"schema": 2}')
    assert show([str(root / "tiny")]) == 1
    out, err = capsys.readouterr()
    assert "broken manifest: manifest.json: field model is missing" in out
    assert err == f"error: {root}/tiny/3: manifest.json: field model is missing\n"
    assert show([str(root)]) == 1
    assert "broken manifest" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("path", "flags", "message"),
    [
        ("none", [], "none does not exist, expected a folder"),
        ("tiny/1/model.onnx", [], "model.onnx is a file, expected a folder"),
        ("empty", [], "empty holds no versions, expected a version, a model or a model repository"),
        ("tiny", ["--version", "2"], "tiny has no version 2; its versions are 1, 3"),
        ("tiny/3", ["--version", "1"], "tiny/3 is the folder of version 3; use --version with a model folder only"),
        (".", ["--version", "1"], "is a model repository; use --version with a model folder only"),
    ],
)
def test_nothing_to_show(path: str, flags: list[str], message: str, root: Path, capsys: Output) -> None:
    assert show([str(root / path), *flags]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert len(err.splitlines()) == 1


def test_a_label_cannot_drive_the_terminal(root: Path, capsys: Output) -> None:
    folder = root / "tiny" / "3"
    (folder / "labels.txt").write_text("\x1b[2Jdark\nleft\nbright\n")
    manifest = manifests.read(folder)
    assert manifest
    files = manifest.files | {"labels.txt": manifests.digest(folder / "labels.txt")}
    (folder / MANIFEST_FILE).write_text(manifests.to_json(dataclasses.replace(manifest, files=files)))
    assert show([str(folder)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\\x1b[2Jdark" in out


def test_the_ways_to_preprocess(root: Path, capsys: Output) -> None:
    tensor = TensorInfo("image", "FP32", (3, 224, 224), "NCHW")
    resize = Resize("shorter", (256,), "bicubic")
    spec = Preprocessing("RGB", resize, (224, 224), (0.485, 0.456, 0.406), (0.2, 0.2, 0.2), "host", False)
    write_version(root / "tiny" / "4", input=tensor, preprocessing=spec)
    assert show([str(root / "tiny")]) == 0
    out = capsys.readouterr().out
    for text in (
        "color: RGB, EXIF orientation ignored",
        "resized: shorter side to 256, bicubic, antialiased",
        "cropped: 224 x 224, the centre",
        "normalised: mean 0.485 0.456 0.406, standard deviation 0.2 0.2 0.2, by the server",
        "other versions  1, 3; show one with --version N",
    ):
        assert text in out


@pytest.mark.parametrize(
    ("resize", "crop", "texts"),
    [
        (Resize("letterbox", (8, 8), "lanczos"), None, ["resized: to fit into 8 x 8, lanczos, antialiased"]),
        (
            Resize("fit", (8, 8), "area", False, "opencv"),
            None,
            ["to height 8, width by the ratio, at most 8, area, by"],
        ),
        (Resize("fit", (8,)), (8, 8), ["resized: to height 8, width by the ratio, bilinear"]),
        (Resize("shorter", (9, 9)), (8, 8), ["resized: to cover 9 x 9", "cropped: 8 x 8, the centre, margins rounded"]),
    ],
)
def test_more_ways_to_preprocess(
    root: Path, resize: Resize, crop: tuple[int, int] | None, texts: list[str], capsys: Output
) -> None:
    pad = Pad((127.0,), "start")
    spec = Preprocessing("L", resize, crop, (0.0,), (1.0,), "graph", pad=pad, scale=1.0, crop_rounding="down")
    assert show([str(write_version(root / "tiny" / "4", preprocessing=spec))]) == 0
    out = capsys.readouterr().out
    for text in (*texts, "padded: on the right and below, colour 127", "scaled: by 1\n"):
        assert text in out


def test_an_imported_file_was_compared_with_itself(root: Path, capsys: Output) -> None:
    parity = Parity({"1": 0.0}, 1e-4, "CPUExecutionProvider", "imported file")
    assert show([str(write_version(root / "tiny" / "4", parity=parity))]) == 0
    assert "parity          largest difference of a probability from the imported file\n" in capsys.readouterr().out


def test_agreement_with_fp32(root: Path, capsys: Output) -> None:
    (entry,) = documents(capsys, root / "tiny")
    entry["manifest"]["agreement"] = {
        "images": IMAGES,
        "top1": 0.996,
        "needed": 0.99,
        "largest_difference": 0.0312,
        "calibration": {"images": {**IMAGES, "count": 100}, "weight_bits": 7},
        "seen_in_calibration": 4,
        "labelled": 200,
        "accuracy": 0.981,
        "fp32_accuracy": 0.9835,
    }
    text = show_text.version(entry)
    for line in (
        "parity          largest difference of a probability of the fp32 file from PyTorch",
        "agreement       with fp32 on 250 images (photos, SHA-256 abab",
        "99.60% have the same most probable class, at least 99.00% required",
        "largest difference of a probability: 0.0312",
        "accuracy 98.10%, in fp32 98.35%, on 200 labelled images",
        "calibrated on 100 images (photos",
        "7-bit weights",
        "4 of the compared images were also used for calibration",
    ):
        assert line in text
    # The parity belongs to another file, the one in fp32.
    assert show_text.table([entry]).splitlines()[1].split()[-2] == "99.60%"
