"""Reading manifest.json, and the errors that name a wrong field or file."""

import json
from pathlib import Path
from typing import Any

import pytest

from cnnserve.errors import ModelLoadFailed
from cnnserve.repository import manifest as manifests
from cnnserve.repository.manifest import Pad
from support import write_version


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_version(tmp_path / "tiny" / "1")


def test_what_is_written_is_read(folder: Path) -> None:
    manifest = manifests.read(folder)
    assert manifest is not None
    assert manifests.parse(manifests.to_json(manifest)) == manifest
    manifests.verify_files(manifest, folder)


def test_no_manifest_is_none(tmp_path: Path) -> None:
    assert manifests.read(tmp_path) is None


def change(folder: Path, path: str, value: Any) -> str:
    raw = json.loads((folder / "manifest.json").read_text())
    *parents, last = path.split(".")
    target = raw
    for key in parents:
        target = target[key]
    if value is None:
        del target[last]
    else:
        target[last] = value
    return json.dumps(raw)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("schema", 3, "schema 3, this server reads 1 and 2"),
        ("schema", True, "schema True, this server reads 1 and 2"),
        ("class_count", None, "field class_count is missing"),
        ("class_count", "3", "class_count is '3', expected int"),
        ("class_count", True, "class_count is True, expected int"),
        ("class_count", 4, r"files.golden.bin.bytes is 12, expected 16: 4 for each of 1 golden image"),
        ("golden.tolerance", "small", "golden.tolerance is 'small', expected a finite number"),
        ("activation", "argmax", "activation is 'argmax', expected one of 'softmax', 'sigmoid', 'none'"),
        ("input.shape", [8, 8], r"input.shape is \[8, 8\]"),
        ("preprocessing.color", "RGB", "color is RGB, which does not give the 1 channels of the input"),
        ("preprocessing.resize.size", [9, 8], r"gives images of size \[9, 8\], the input needs \[8, 8\]"),
        ("preprocessing.resize", {"mode": "shorter", "size": [8]}, r"no fixed size, the input needs \[8, 8\]"),
        ("preprocessing.resize.size", [8], r"size is \[8\], mode exact needs 2 positive size"),
        ("preprocessing.resize.antialias", False, "antialias is false, expected true: Pillow always resizes with"),
        ("preprocessing.resize.library", "opencv", "antialias is true, expected false: .* OpenCV without"),
        ("preprocessing.resize.interpolation", "area", "interpolation is area, but pillow has nearest, box, bilinear"),
        ("preprocessing.resize", {"mode": "letterbox", "size": [8]}, r"mode letterbox needs 2 positive size"),
        ("preprocessing.resize", {"mode": "fit", "size": [8]}, r"no fixed size, the input needs \[8, 8\]"),
        ("preprocessing.resize", {"mode": "shorter", "size": [8, 8, 8]}, r"mode shorter needs 1 or 2 positive size"),
        (
            "preprocessing.pad",
            {"color": [1, 2, 3]},
            r"pad.color is \[1.0, 2.0, 3.0\], expected 1 value\(s\) from 0 to 255",
        ),
        ("preprocessing.pad", {"color": [256]}, r"pad.color is \[256.0\], expected 1 value\(s\) from 0 to 255"),
        (
            "preprocessing.pad",
            {"color": [0.5]},
            r"pad.color is \[0.5\], expected whole numbers: the input takes pixels",
        ),
        ("preprocessing.scale", 0, r"scale is \[0.0\], expected positive values"),
        ("preprocessing.crop_rounding", "up", "crop_rounding is 'up', expected one of 'even', 'down'"),
        ("preprocessing.std", [0.0], r"std is \[0.0\], expected positive values"),
        ("preprocessing.mean", [0.0, 0.0], "mean has 2 values, expected one for each of 1 channels"),
        ("preprocessing.mean", [10**400], "mean.* is a number of more than 77 digits, expected a finite number"),
        ("onnx.file", "a\ud800.onnx", "expected text without lone surrogates"),
        ("max_batch_size", 0, "max_batch_size is 0"),
        ("onnx.file", "../../other/1/model.onnx", "expected a file name without a folder"),
        ("onnx.file", "other.onnx", "no digest for other.onnx"),
        ("files.model.onnx", None, "no digest for model.onnx"),
    ],
)
def test_a_wrong_field_is_named(folder: Path, path: str, value: Any, said: str) -> None:
    if path == "files.model.onnx":
        raw = json.loads((folder / "manifest.json").read_text())
        del raw["files"]["model.onnx"]
        text = json.dumps(raw)
    else:
        text = change(folder, path, value)
    with pytest.raises(ModelLoadFailed, match=said):
        manifests.parse(text)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"schema": 1}', "[" * 200_000])
def test_not_a_manifest(text: str) -> None:
    with pytest.raises(ModelLoadFailed):
        manifests.parse(text)


def test_a_missing_and_an_altered_file_are_named(folder: Path) -> None:
    manifest = manifests.read(folder)
    assert manifest is not None
    content = (folder / "golden.png").read_bytes()
    (folder / "golden.png").write_bytes(content[:-1] + b"x")
    with pytest.raises(ModelLoadFailed, match=r"golden.png was altered"):
        manifests.verify_files(manifest, folder)
    (folder / "golden.png").write_bytes(content[:-1])
    with pytest.raises(ModelLoadFailed, match=r"golden.png has \d+ bytes, the manifest says"):
        manifests.verify_files(manifest, folder)
    (folder / "golden.png").unlink()
    with pytest.raises(ModelLoadFailed, match=r"golden.png is missing"):
        manifests.verify_files(manifest, folder)


def test_the_host_may_pad_with_what_is_no_pixel(folder: Path) -> None:
    raw = json.loads(change(folder, "preprocessing.pad", {"color": [0.5]}))
    raw["preprocessing"]["normalize"] = "host"
    raw["input"] |= {"datatype": "FP32", "layout": "NCHW", "shape": [1, 8, 8]}
    parsed = manifests.parse(json.dumps(raw))
    assert parsed.preprocessing.pad == Pad((0.5,))
