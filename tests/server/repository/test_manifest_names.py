"""The files that a manifest may name, and the sizes that it may state: whatever else it says is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest

from cnnserve.errors import ModelLoadFailed
from cnnserve.repository import manifest as manifests
from cnnserve.repository import version_files
from cnnserve.repository.manifest import Resize
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


def test_the_smallest_sizes_are_read(raw: dict[str, Any]) -> None:
    raw["max_batch_size"] = 1
    raw["input"]["shape"] = [1, 1, 1]
    raw["preprocessing"] |= {"resize": {"mode": "shorter", "size": [1]}, "crop": [1, 1]}
    assert manifests.parse(json.dumps(raw)).max_batch_size == 1
    raw["preprocessing"] |= {"resize": {"mode": "exact", "size": [1, 1]}, "crop": None}
    assert manifests.parse(json.dumps(raw)).input.shape == (1, 1, 1)


AGREEMENT = {
    "images": {"name": "photos", "count": 100, "sha256": "ab" * 32},
    "top1": 1,
    "needed": 0.99,
    "largest_difference": 0.01,
}


@pytest.mark.parametrize(
    ("path", "low", "high"),
    [
        (("version",), 1, 10**18 - 1),
        (("parameters",), 0, 2**63 - 1),
        (("onnx", "opset"), 0, 2**63 - 1),
        (("onnx", "ir_version"), 0, 2**63 - 1),
        (("max_batch_size",), 1, 65536),
        (("parity", "tolerance"), 0, 1),
        (("parity", "batches", "1"), 0, 1),
        (("files", "labels.txt", "bytes"), 0, 2**63 - 1),
        (("agreement", "top1"), 0, 1),
        (("agreement", "needed"), 0, 1),
        (("agreement", "largest_difference"), 0, 1),
        (("preprocessing", "pad", "color", 0), 0, 255),
        (("preprocessing", "mean", 0), -(10**6), 10**6),
        (("preprocessing", "std", 0), 2.0**-126, 10**6),
        (("preprocessing", "scale"), 2.0**-126, 10**6),
        (("preprocessing", "resize", "size", 0), 1, 65536),
    ],
)
def test_numbers_have_a_range(raw: dict[str, Any], path: tuple[str | int, ...], low: float, high: float) -> None:
    raw["agreement"] = dict(AGREEMENT)
    raw["preprocessing"] |= {"pad": {"color": [0]}, "crop": [8, 8], "resize": {"mode": "shorter", "size": [8]}}
    target = raw
    for key in path[:-1]:
        target = target[key]  # type: ignore[index]
    for value in (low, high):
        target[path[-1]] = value  # type: ignore[index]
        manifests.parse(json.dumps(raw))
    for value in (low - 1, high + 1 if high < 10**17 else high * 2):
        target[path[-1]] = value  # type: ignore[index]
        name = ".".join(str(key) for key in path if not isinstance(key, int))
        assert f"{name} is " in refused(raw)


@pytest.mark.parametrize("name", ["version", "parameters", "max_batch_size", "class_count"])
def test_an_integer_that_is_too_large_for_a_float_is_refused(raw: dict[str, Any], name: str) -> None:
    raw[name] = 10**400
    assert f"{name} is a number of more than 77 digits, expected" in refused(raw)


@pytest.mark.parametrize(("classes", "fits"), [(1, True), (2**24, True), (2**24 + 1, False), (0, False)])
def test_a_model_has_up_to_16_million_classes(raw: dict[str, Any], classes: int, fits: bool) -> None:
    raw["class_count"], raw["output"]["shape"] = classes, [classes]
    raw["files"]["golden.bin"]["bytes"] = 4 * classes
    if fits:
        assert manifests.parse(json.dumps(raw)).class_count == classes
    else:
        assert "class_count is " in refused(raw)


@pytest.mark.parametrize(("side", "fits"), [(65536, True), (65537, False)])
def test_a_side_has_up_to_65536_pixels(raw: dict[str, Any], side: int, fits: bool) -> None:
    raw["input"]["shape"] = [8, side, 1]
    raw["preprocessing"] |= {"crop": [8, side], "resize": None}
    if fits:
        assert manifests.parse(json.dumps(raw)).input.shape == (8, side, 1)
    else:
        assert "input.shape is " in refused(raw)


@pytest.mark.parametrize(
    ("precision", "tolerance", "log_tolerance"), [("fp32", 1e-4, 1e-3), ("fp16", 1e-2, None), ("int8", 1e-2, None)]
)
def test_tolerances_have_limits(
    raw: dict[str, Any], precision: str, tolerance: float, log_tolerance: float | None
) -> None:
    largest = log_tolerance or manifests.LOG_TOLERANCES[precision]
    raw["onnx"]["precision"] = precision
    raw["golden"] |= {"tolerance": tolerance, "log_tolerance": largest}
    assert manifests.parse(json.dumps(raw)).golden.tolerance == tolerance
    raw["golden"]["tolerance"] = tolerance * 1.001
    assert f"at most {tolerance:g}, the limit of the server for {precision}" in refused(raw)
    raw["golden"] |= {"tolerance": tolerance, "log_tolerance": largest * 1.001}
    assert f"golden.log_tolerance is {largest * 1.001:g}, expected more than 0 and at most {largest:g}" in refused(raw)


def test_a_manifest_may_have_no_labels(raw: dict[str, Any]) -> None:
    raw["labels"] = None
    assert manifests.parse(json.dumps(raw)).labels is None


def test_labels_need_a_digest_too(raw: dict[str, Any]) -> None:
    del raw["files"]["labels.txt"]
    assert "labels.txt" in refused(raw)


def test_all_files_without_digest_are_named(raw: dict[str, Any]) -> None:
    del raw["files"]["labels.txt"], raw["files"]["golden.png"]
    assert "golden.png, labels.txt" in refused(raw)


def test_an_input_states_its_layout(raw: dict[str, Any]) -> None:
    raw["input"]["layout"] = None
    assert "input.layout" in refused(raw)


def test_channels_come_first_or_last(raw: dict[str, Any]) -> None:
    raw["input"] |= {"shape": [3, 6, 8], "layout": "NCHW"}
    raw["preprocessing"] |= {"color": "RGB", "mean": [0, 0, 0], "std": [1, 1, 1]}
    raw["preprocessing"]["resize"]["size"] = [6, 8]
    assert manifests.parse(json.dumps(raw)).input.layout == "NCHW"
    raw["preprocessing"]["resize"]["size"] = [8, 6]
    assert "[6, 8]" in refused(raw)
    raw["input"] |= {"shape": [6, 8, 3], "layout": "NHWC"}
    assert "[6, 8]" in refused(raw)
    raw["preprocessing"]["resize"]["size"] = [6, 8]
    assert manifests.parse(json.dumps(raw)).preprocessing.color == "RGB"


@pytest.mark.parametrize(("color", "channels"), [("RGB", 1), ("RGB", 4), ("BGR", 2), ("L", 3), ("L", 2)])
def test_colours_have_three_channels_and_grey_has_one(raw: dict[str, Any], color: str, channels: int) -> None:
    raw["input"]["shape"] = [8, 8, channels]
    raw["preprocessing"] |= {"color": color, "mean": [0] * channels, "std": [1] * channels}
    assert f"{channels} channels" in refused(raw)


@pytest.mark.parametrize("field", ["mean", "std"])
def test_each_channel_has_its_mean_and_std(raw: dict[str, Any], field: str) -> None:
    for values in ([], [1, 1]):
        raw["preprocessing"][field] = values
        assert f"preprocessing.{field} has {len(values)} values" in refused(raw)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("weights", "source"), 7, "weights.source is 7, expected str"),
        (("parity", "batches", "1"), "x", "parity.batches.1 is 'x', expected a finite number"),
        (("parity", "batches", "1"), True, "parity.batches.1 is True, expected a finite number"),
        (("parity", "batches"), [], "parity.batches is []"),
        (("golden", "images"), ["golden.png", 7], "golden.images[1] is 7, expected str"),
        (("golden", "images"), {}, "golden.images is {}"),
        (("golden", "probabilities"), {}, "golden.probabilities is {}"),
        (("preprocessing", "crop"), [8], "preprocessing.crop is [8]"),
        (("preprocessing", "crop"), [8, 8, 8], "preprocessing.crop is [8, 8, 8]"),
        (("preprocessing", "crop"), [8, 8.5], "preprocessing.crop[1] is 8.5, expected int"),
        (("preprocessing", "crop"), "8", "preprocessing.crop is '8'"),
        (("preprocessing", "resize"), [8], "preprocessing.resize is [8]"),
        (("preprocessing", "resize", "mode"), "longer", "preprocessing.resize.mode is 'longer', expected one of"),
        (("files", "model.onnx", "bytes"), "x", "files.model.onnx.bytes is 'x', expected int"),
        (("files", "model.onnx"), 1, "files.model.onnx is 1, expected FileDigest"),
        (("agreement",), 3, "agreement is 3"),
        (("version",), 1.0, "version is 1.0, expected int"),
    ],
)
def test_a_wrong_type_is_named_with_its_place(
    raw: dict[str, Any], path: tuple[str, ...], value: Any, said: str
) -> None:
    target = raw
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    assert said in refused(raw)


def test_whole_numbers_are_read_as_floats(raw: dict[str, Any]) -> None:
    raw["parity"]["tolerance"] = 1
    tolerance = manifests.parse(json.dumps(raw)).parity.tolerance
    assert (tolerance, type(tolerance)) == (1.0, float)


@pytest.mark.parametrize(("text", "said"), [("{", "JSON"), ("[]", "holds a list"), ("3", "holds a int")])
def test_what_is_no_object_is_told(text: str, said: str) -> None:
    with pytest.raises(ModelLoadFailed, match=said):
        manifests.parse(text)
    with pytest.raises(ModelLoadFailed, match=said):
        manifests.parse_preprocessing(text, (8, 8, 1))


def test_an_unreadable_manifest_says_why(tmp_path: Path) -> None:
    (tmp_path / manifests.MANIFEST_FILE).mkdir()
    with pytest.raises(ModelLoadFailed, match=r"manifest\.json is not a file"):
        manifests.read(tmp_path)
    (tmp_path / manifests.MANIFEST_FILE).rmdir()
    (tmp_path / manifests.MANIFEST_FILE).write_bytes(b"\xff")
    with pytest.raises(ModelLoadFailed, match=r"manifest\.json cannot be read: .*utf-8"):
        manifests.read(tmp_path)


PREPROCESSING = {"color": "L", "mean": [0], "std": [1], "normalize": "none"}


def test_a_preprocessing_by_itself_may_leave_out_what_a_manifest_has() -> None:
    spec = manifests.parse_preprocessing(json.dumps(PREPROCESSING | {"crop": [8, 6]}), (8, 6, 1))
    assert (spec.resize, spec.crop, spec.exif_orientation) == (None, (8, 6), True)
    resize = {"mode": "exact", "size": [8, 6]}
    spec = manifests.parse_preprocessing(json.dumps(PREPROCESSING | {"resize": resize}), (8, 6, 1))
    assert (spec.resize, spec.crop) == (Resize("exact", (8, 6)), None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"resise": None, "croq": None},
            "no field 'croq'; known are color, crop, crop_rounding, exif_orientation, mean, normalize, pad, ",
        ),
        ({"crop": [6, 8]}, "[8, 6]"),
        ({}, "[8, 6]"),
        ({"crop": [8, 6], "color": "RGB"}, "RGB"),
        ({"crop": [8, "6"]}, "crop[1] is '6', expected int"),
    ],
)
def test_a_preprocessing_by_itself_is_checked(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelLoadFailed) as caught:
        manifests.parse_preprocessing(json.dumps(PREPROCESSING | changes), (8, 6, 1))
    assert said in str(caught.value)


def test_altered_files_are_listed_with_what_is_wrong(tmp_path: Path) -> None:
    folder = write_version(tmp_path / "tiny" / "1")
    manifest = manifests.read(folder)
    assert manifest is not None
    with version_files.of(folder) as files:
        assert manifests.altered_files(manifest, files) == {}
    labels, image = folder / "labels.txt", folder / "golden.png"
    labels.write_text(labels.read_text().upper())
    image.unlink()
    with version_files.of(folder) as files:
        found = manifests.altered_files(manifest, files)
    assert found.keys() == {"labels.txt", "golden.png"}
    digests = (manifests.digest(labels).sha256[:12], manifest.files["labels.txt"].sha256[:12])
    assert all(f"{digest}…" in found["labels.txt"] for digest in digests)
    assert "missing" in found["golden.png"]


def test_a_manifest_is_written_for_people(tmp_path: Path) -> None:
    text = (write_version(tmp_path / "tiny" / "1") / manifests.MANIFEST_FILE).read_text()
    assert text.startswith('{\n  "schema": 2,\n  "model": "tiny",\n  "version": 1,\n')
    assert text.endswith("\n}\n")
