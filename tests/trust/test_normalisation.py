"""Kind: mean or std that the graph contradicts."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cnnserve.repository.show import show
from cnnserve_export.cli import import_onnx
from spoiling import Spoiling, field, lenet5, refusal

ROWS = [
    Spoiling("another mean", field("preprocessing/mean", [0.5]), "says mean 0.5 and standard deviation 0.325"),
    Spoiling("another std", field("preprocessing/std", [0.5]), "says mean 0.306 and standard deviation 0.5"),
    Spoiling("the mean of pixels", field("preprocessing/mean", [78.0]), "says mean 78 and standard deviation 0.325"),
]


@pytest.mark.parametrize("spoiling", ROWS, ids=str)
@pytest.mark.parametrize("schema", [1, 2])
def test_show_tells_it(tmp_path: Path, capsys: pytest.CaptureFixture[str], spoiling: Spoiling, schema: int) -> None:
    folder = lenet5(tmp_path, schema=schema)
    spoiling.change(folder)
    # The graph normalises, so what is served is right.
    assert refusal(folder) == ""
    assert show([str(folder)]) == 0
    pixels = "the graph normalises pixels with mean 0.306 and standard deviation 0.325"
    assert f"{pixels}, the manifest {spoiling.said}\n" in capsys.readouterr().out


def test_show_tells_another_scale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = lenet5(tmp_path)
    field("preprocessing/scale", 1.0)(folder)
    assert show([str(folder)]) == 0
    pixels = "the graph normalises pixels with mean 78.03 and standard deviation 82.87"
    assert f"{pixels}, the manifest says mean 0.306 and standard deviation 0.325\n" in capsys.readouterr().out


def test_show_has_nothing_to_tell_of_what_is_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert show([str(lenet5(tmp_path))]) == 0
    assert "normalises" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("mean", "std", "told"), [("0.4", "0.2", True), ("0.5", "0.25", True), ("0", "0.003921569", False)]
)
def test_an_import_tells_what_is_normalised_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mean: str, std: str, told: bool
) -> None:
    """The file takes floats of 0 to 255 and normalises them itself."""
    path = tmp_path / "pixels.onnx"
    weights = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Sub", ["image", "mean"], ["centred"]),
            helper.make_node("Div", ["centred", "std"], ["normalised"]),
            helper.make_node("Flatten", ["normalised"], ["row"]),
            helper.make_node("MatMul", ["row", "weights"], ["logits"]),
        ],
        "pixels",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])],
        [
            numpy_helper.from_array(np.float32(127.5).reshape(1, 1, 1, 1), "mean"),
            numpy_helper.from_array(np.float32(63.75).reshape(1, 1, 1, 1), "std"),
            numpy_helper.from_array(weights, "weights"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    flags = [str(path), "--repository", str(tmp_path), "--color", "L", "--max-batch-size", "2"]
    assert import_onnx([*flags, "--mean", mean, "--std", std]) == 0
    warning = "WARNING: the graph normalises once more, with mean 127.5 and standard deviation 63.75"
    assert (warning in capsys.readouterr().err) is told
