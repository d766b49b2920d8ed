"""The file of golden probabilities: its layout, and what cannot be the output of a model."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cnnserve.errors import ModelLoadFailed
from cnnserve.repository import manifest as manifests
from cnnserve.repository.manifest import Golden, Manifest
from support import picture, write_version


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version with two golden images."""
    images = {"a.png": picture("left"), "b.png": picture("bright")}
    return write_version(tmp_path_factory.mktemp("models") / "tiny" / "1", golden_images=images)


def manifest_of(folder: Path, activation: str = "softmax") -> Manifest:
    manifest = manifests.read(folder)
    assert manifest is not None
    return dataclasses.replace(manifest, activation=activation)  # type: ignore[arg-type]


def test_a_row_for_each_image(two: Path) -> None:
    asked = []

    def read(name: str) -> bytes:
        asked.append(name)
        return (two / name).read_bytes()

    rows = manifests.golden_probabilities(manifest_of(two), read)
    assert (asked, rows.shape, rows.dtype) == (["golden.bin"], (2, 3), np.float32)
    assert rows.argmax(axis=1).tolist() == [1, 2]


def test_the_file_is_float32_little_endian_row_by_row() -> None:
    rows = np.array([[0.25, 0.75], [1, 0]])
    assert manifests.golden_bytes(rows) == bytes.fromhex("0000803e 0000403f 0000803f 00000000")
    assert manifests.golden_bytes(rows.astype(">f4")) == manifests.golden_bytes(rows)
    assert manifests.golden_bytes([0.25, 0.75]) == manifests.golden_bytes(rows[0])


@given(arrays.arrays(np.float32, (2, 3), elements=st.floats(0, 1, width=32)))
def test_what_is_written_is_read(two: Path, rows: np.ndarray) -> None:
    read = manifests.golden_probabilities(manifest_of(two, "sigmoid"), lambda _: manifests.golden_bytes(rows))
    np.testing.assert_array_equal(read, rows)


GOOD = [[0.25, 0.5, 0.25], [0, 0, 1]]


@pytest.mark.parametrize(
    ("rows", "activation", "said"),
    [
        (GOOD, "softmax", ""),
        ([[0.25, 0.5, 0.2501], [0, 0, 1]], "softmax", ""),
        ([[0.25, 0.5, 0.2499], [0, 0, 1]], "softmax", ""),
        (GOOD[:1], "softmax", r"golden.bin has 3 values, expected 3 (class_count) for each of 2 golden image(s)"),
        ([*GOOD, GOOD[0]], "softmax", r"golden.bin has 9 values, expected 3 (class_count) for each of 2 golden"),
        (
            [[0.25, 0.5, 0.25], [0, 0, 0.99]],
            "softmax",
            "golden.bin: the probabilities of an image sum to 0.99, expected 1",
        ),
        (
            [[0.25, 0.5, 0.26], [0, 0, 1]],
            "softmax",
            "golden.bin: the probabilities of an image sum to 1.01, expected 1",
        ),
        ([[0.25, 0.5, 0.26], [0, 0, 1]], "sigmoid", ""),
        ([[0.9, 0.9, 0.9], [0, 0, 0]], "sigmoid", ""),
        ([[0.9, 0.9, 1.1], [0, 0, 0]], "sigmoid", "golden.bin holds values from 0 to 1.1, expected probabilities"),
        ([[0.5, 0.75, -0.25], [0, 0, 1]], "softmax", "golden.bin holds values from -0.25 to 1, expected probabilities"),
        ([[-0.5, 0.5, 0.5], [0, 0, 0]], "sigmoid", "golden.bin holds values from -0.5 to 0.5, expected probabilities"),
        ([[-7, 12, 3], [0, 0, 0]], "none", ""),
        ([[0.25, 0.5, 0.26], [0, 0, 1]], "none", ""),
        (GOOD, "none", "golden.bin holds probabilities, which sum to 1, but activation is none; expected logits"),
        ([[-7, np.inf, 3], [0, 0, 0]], "none", "golden.bin holds values that are not finite"),
        ([[0.25, 0.5, 0.25], [0, np.nan, 1]], "softmax", "golden.bin holds values that are not finite"),
    ],
)
def test_only_outputs_of_the_model_are_read(two: Path, rows: list[list[float]], activation: str, said: str) -> None:
    data = manifests.golden_bytes(np.array(rows))
    if not said:
        manifests.golden_probabilities(manifest_of(two, activation), lambda _: data)
        return
    with pytest.raises(ModelLoadFailed) as caught:
        manifests.golden_probabilities(manifest_of(two, activation), lambda _: data)
    assert str(caught.value).startswith(f"manifest.json: {said}")


def test_half_a_value_is_refused(two: Path) -> None:
    with pytest.raises(ModelLoadFailed, match=r"golden.bin has 5\.5 values, expected 3"):
        manifests.golden_probabilities(manifest_of(two), lambda _: b"\0" * 22)


def test_schema_1_has_them_in_the_manifest(two: Path) -> None:
    def refuse(name: str) -> bytes:
        raise AssertionError(f"{name} was read")

    golden = Golden(("a.png",), None, 1e-4, None, manifests.golden_bytes(np.array([GOOD[0]])))
    manifest = dataclasses.replace(manifest_of(two), golden=golden, schema=1)
    assert manifests.golden_probabilities(manifest, refuse).tolist() == [GOOD[0]]
    short = dataclasses.replace(manifest, golden=dataclasses.replace(golden, inline=b"\0" * 8))
    with pytest.raises(ModelLoadFailed, match=r"golden\.probabilities has 2 values, expected 3"):
        manifests.golden_probabilities(short, refuse)
