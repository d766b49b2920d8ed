"""The files that a manifest may name, and the sizes that it may state: whatever else it says is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest

from cnnserve.errors import ModelLoadFailed
from cnnserve.repository import manifest as manifests
from support import write_version

# Each of them but the empty one is the name of something that there may be.
NAMES = ["..", ".", ".hidden", "../labels.txt", "a/b", "a\\b", "/etc/hostname", "a\0b", "a\udfffb", ""]


@pytest.fixture
def raw(tmp_path: Path) -> dict[str, Any]:
    folder = write_version(tmp_path / "tiny" / "1")
    result: dict[str, Any] = json.loads((folder / manifests.MANIFEST_FILE).read_text())
    return result


def refused(raw: dict[str, Any]) -> str:
    with pytest.raises(ModelLoadFailed) as caught:
        manifests.parse(json.dumps(raw))
    return str(caught.value)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("field", ["onnx.file", "golden.images", "golden.probabilities", "labels", "files"])
def test_only_plain_names_of_files_are_read(raw: dict[str, Any], field: str, name: str) -> None:
    # A digest for every name: its absence is not what refuses it.
    raw["files"][name] = raw["files"]["labels.txt"]
    if field == "labels":
        raw["labels"] = name
    elif field != "files":
        parent, key = field.split(".")
        raw[parent][key] = [name] if key == "images" else name
    assert repr(name) in refused(raw)


@pytest.mark.parametrize("name", ["labels", "labels..txt", "Labels of 2026.txt", "étiquettes.txt", "a.b-c_d"])
def test_a_plain_name_is_any_other(raw: dict[str, Any], name: str) -> None:
    raw["files"][name] = raw["files"]["labels.txt"]
    raw["labels"] = name
    assert manifests.parse(json.dumps(raw)).labels == name


@pytest.mark.parametrize("shape", [[0, 8, 1], [8, 0, 1], [8, 8, 0], [-1, 8, 1], [8, 8], [8, 8, 1, 1]])
def test_an_input_has_three_positive_sizes(raw: dict[str, Any], shape: list[int]) -> None:
    raw["input"]["shape"] = shape
    assert f"input.shape is {shape}" in refused(raw)


@pytest.mark.parametrize(
    ("resize", "crop"),
    [
        ({"mode": "shorter", "size": [0]}, [8, 8]),
        ({"mode": "shorter", "size": [-8]}, [8, 8]),
        ({"mode": "shorter", "size": []}, [8, 8]),
        ({"mode": "shorter", "size": [8, 8, 8]}, [8, 8]),
        ({"mode": "exact", "size": [8, 0]}, [8, 8]),
        ({"mode": "exact", "size": [0, 8]}, [8, 8]),
    ],
)
def test_a_resize_has_positive_sizes(raw: dict[str, Any], resize: dict[str, Any], crop: list[int]) -> None:
    raw["preprocessing"] |= {"resize": resize, "crop": crop}
    assert str(resize["size"]) in refused(raw)


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_has_at_least_one_row(raw: dict[str, Any], size: int) -> None:
    raw["max_batch_size"] = size
    assert f"max_batch_size is {size}" in refused(raw)


@pytest.mark.parametrize("std", [0.0, -1.0, 1e-60])
def test_nothing_is_divided_by_zero(raw: dict[str, Any], std: float) -> None:
    raw["preprocessing"]["std"] = [std]
    assert "preprocessing.std" in refused(raw)
