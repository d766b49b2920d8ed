"""Mean and std in a manifest, compared with real graphs that normalise in many ways."""

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from cnnserve.repository import manifest as manifests
from cnnserve.repository import onnx_head, onnx_wire
from cnnserve.repository.manifest import Preprocessing, TensorInfo
from cnnserve.repository.normalisation import contradiction
from support import REPOSITORY

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OTHER = (0.5, 0.5, 0.5)
PIXELS = TensorInfo("pixels", "UINT8", (8, 8, 3), "NHWC")
FLOATS = TensorInfo("pixels", "FP32", (3, 8, 8), "NCHW")
# An operator and its constant: one value, or one for each channel. A leading "-" puts the constant first.
Steps = Sequence[tuple[str, float | Sequence[float]]]


def graph(tensor: TensorInfo, steps: Steps, dtype: type[np.floating] = np.float32, *, nodes: bool = False) -> bytes:
    """A file that applies `steps` to its input, after what `tensor` needs to become floats of (N, C, H, W)."""
    parts, constants = [], []
    kind = {np.float32: TensorProto.FLOAT, np.float16: TensorProto.FLOAT16, np.float64: TensorProto.DOUBLE}[dtype]
    name = tensor.name
    if tensor.layout == "NHWC":
        parts.append(helper.make_node("Transpose", [name], ["turned"], perm=[0, 3, 1, 2]))
        name = "turned"
    parts.append(helper.make_node("Cast", [name], ["x0"], to=kind))
    parts.append(helper.make_node("Shape", [tensor.name], ["shape"]))
    for number, (operator, value) in enumerate(steps):
        array: NDArray[np.floating] = np.asarray(value, dtype).reshape((-1, 1, 1) if np.ndim(value) else ())
        constant = numpy_helper.from_array(array, f"c{number}")
        if nodes:
            parts.append(helper.make_node("Constant", [], [f"c{number}"], value=constant))
        else:
            constants.append(constant)
        inputs = [f"x{number}", f"c{number}"]
        inputs = inputs[::-1] if operator.startswith("-") else inputs
        parts.append(helper.make_node(operator.removeprefix("-"), inputs, [f"x{number + 1}"]))
    parts.append(helper.make_node("GlobalAveragePool", [f"x{len(steps)}"], ["y"]))
    elements = {"UINT8": TensorProto.UINT8, "FP32": TensorProto.FLOAT}
    made = helper.make_graph(
        parts,
        "normalising",
        [helper.make_tensor_value_info(tensor.name, elements[tensor.datatype], ["n", *tensor.shape])],
        [helper.make_tensor_value_info("y", kind, ["n", 3, 1, 1])],
        constants,
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


def asked(
    tmp_path: Path,
    tensor: TensorInfo,
    normalize: str,
    data: bytes,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
) -> str:
    (tmp_path / "model.onnx").write_bytes(data)
    color = "RGB" if len(mean) == 3 else "L"
    spec = Preprocessing(color, None, (8, 8), tuple(mean), tuple(std), normalize)  # type: ignore[arg-type]
    return contradiction(spec, tensor, tmp_path / "model.onnx")


@pytest.mark.parametrize(("scale", "std"), [(1.0, 1.0), (1 / 255, 1 / 255), (1.0, 1.5)])
def test_a_graph_may_normalise_values_of_0_to_255(tmp_path: Path, scale: float, std: float) -> None:
    data = graph(FLOATS, [("Div", 255.0), ("Sub", MEAN), ("Div", STD)])
    (tmp_path / "model.onnx").write_bytes(data)
    spec = Preprocessing("RGB", None, (8, 8), (0.0,) * 3, (std,) * 3, "host", scale=scale)
    assert contradiction(spec, FLOATS, tmp_path / "model.onnx") == ""
    assert "once more" in asked(tmp_path, FLOATS, "host", data, (0.0,) * 3, (1.0,) * 3)


def times(values: Sequence[float], by: float) -> list[float]:
    return [value * by for value in values]


# All of them give (pixel / 255 - MEAN) / STD.
SAME: list[Steps] = [
    [("Div", 255.0), ("Sub", MEAN), ("Div", STD)],
    [("Mul", 1 / 255), ("Sub", MEAN), ("Mul", [1 / std for std in STD])],
    [("Sub", times(MEAN, 255)), ("Div", times(STD, 255))],
    [("Mul", [1 / 255 / s for s in STD]), ("Add", [-m / s for m, s in zip(MEAN, STD, strict=True)])],
    [("-Sub", times(MEAN, 255)), ("Div", times(STD, -255))],
    [("-Mul", 1 / 255), ("-Add", times(MEAN, -1)), ("Div", STD)],
]


@pytest.mark.parametrize("steps", SAME)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
@pytest.mark.parametrize("nodes", [False, True])
def test_a_graph_that_normalises_as_the_manifest_says(
    tmp_path: Path, steps: Steps, dtype: type[np.floating], nodes: bool
) -> None:
    data = graph(PIXELS, steps, dtype, nodes=nodes)
    assert asked(tmp_path, PIXELS, "graph", data) == ""
    said = asked(tmp_path, PIXELS, "graph", data, mean=OTHER)
    assert said.startswith("the graph normalises pixels with mean 0.48")
    assert said.endswith("the manifest says mean 0.5 0.5 0.5 and standard deviation 0.229 0.224 0.225")
    assert "standard deviation 0.22" in asked(tmp_path, PIXELS, "graph", data, std=OTHER)
    # The channels in another order.
    assert asked(tmp_path, PIXELS, "graph", data, mean=MEAN[::-1])


@pytest.mark.parametrize(
    ("steps", "mean", "std", "clear"),
    [
        ([], MEAN, STD, False),
        # What is missing may be in the convolution.
        ([("Div", 255.0 * 0.25)], MEAN, (0.25,) * 3, False),
        ([("Div", 255.0 * 0.25)], MEAN, STD, True),
        ([("Sub", times(MEAN, 255))], MEAN, STD, False),
        ([("Sub", times(MEAN, 255))], OTHER, STD, True),
        ([("Mul", 0.0)], MEAN, STD, True),
        # What follows is no normalisation any more.
        ([*SAME[0], ("Mul", 0.5), ("Add", 0.25)], MEAN, STD, False),
        ([*SAME[0], ("Sub", MEAN), ("Div", STD)], MEAN, STD, True),
    ],
)
def test_what_is_clear(tmp_path: Path, steps: Steps, mean: Sequence[float], std: Sequence[float], clear: bool) -> None:
    assert bool(asked(tmp_path, PIXELS, "graph", graph(PIXELS, steps), mean, std)) is clear


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([], ""),
        ([("Sub", MEAN), ("Div", STD)], "the graph normalises once more, with mean 0.485 0.456 0.406 and"),
        ([("Div", 255.0)], "the graph normalises once more, with mean 0 0 0 and standard deviation 255 255 255"),
        (SAME[2], "the graph normalises once more, with mean 123.7 116.3 103.5 and standard deviation 58.4"),
        # torchvision's GoogLeNet and Inception: from ImageNet's normalisation to -1 to 1.
        ([("Mul", [0.458, 0.448, 0.45]), ("Add", [-0.03, -0.088, -0.188])], ""),
        ([("Mul", 0.5)], ""),
    ],
)
def test_what_the_server_normalised_is_not_normalised_again(tmp_path: Path, steps: Steps, said: str) -> None:
    found = asked(tmp_path, FLOATS, "host", graph(FLOATS, steps))
    assert found.startswith(said)
    assert bool(found) is bool(said)


@pytest.mark.parametrize("field", ["float_data", "raw_data"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_constants_are_stored_in_two_ways(tmp_path: Path, field: str, dtype: type[np.floating]) -> None:
    model = onnx.load_from_string(graph(PIXELS, SAME[0], dtype))
    for number, constant in enumerate(model.graph.initializer):
        if field == "float_data":
            values = numpy_helper.to_array(constant).ravel().tolist()
            tensor = helper.make_tensor(constant.name, constant.data_type, constant.dims, values)
            assert not tensor.raw_data
            model.graph.initializer[number].CopyFrom(tensor)
    data = model.SerializeToString()
    assert asked(tmp_path, PIXELS, "graph", data) == ""
    assert "mean 0.485 0.456 0.406" in asked(tmp_path, PIXELS, "graph", data, mean=OTHER)


def test_the_operators_of_onnx_have_two_names(tmp_path: Path) -> None:
    model = onnx.load_from_string(graph(PIXELS, SAME[0]))
    for domain, clear in (("ai.onnx", True), ("com.example", False)):
        for node in model.graph.node:
            node.domain = domain
        assert bool(asked(tmp_path, PIXELS, "graph", model.SerializeToString(), mean=OTHER)) is clear


def test_a_transpose_without_order_turns_all_dimensions_round(tmp_path: Path) -> None:
    """(N, H, W, C) becomes (C, W, H, N), so the channels come first."""
    model = onnx.load_from_string(graph(PIXELS, SAME[0]))
    model.graph.node[0].ClearField("attribute")
    for constant in model.graph.initializer:
        if constant.dims:
            constant.dims[:] = [3, 1, 1, 1]
    assert asked(tmp_path, PIXELS, "graph", model.SerializeToString()) == ""
    assert asked(tmp_path, PIXELS, "graph", model.SerializeToString(), mean=OTHER)


def first_steps(
    nodes: Sequence[onnx.NodeProto], constants: Sequence[NDArray[np.generic]] = ()
) -> list[onnx_head.Affine]:
    """Returns what is clear of a graph with these nodes and the constants k0, k1, ..."""
    tensors = [numpy_helper.from_array(constant, f"k{number}") for number, constant in enumerate(constants)]
    model = helper.make_model(helper.make_graph(nodes, "steps", [], [], tensors))
    return onnx_head.input_arithmetic(io.BytesIO(model.SerializeToString()), "x", 1, 3)


@pytest.mark.parametrize(
    ("nodes", "constant", "count"),
    [
        ([("Identity", ["x"]), ("Mul", ["y0", "k0"])], np.float32(2), 1),
        ([("Cast", ["x"]), ("Add", ["y0", "k0"]), ("Mul", ["y1", "k0"])], np.ones((3, 1, 1), np.float32), 2),
        ([("Mul", ["x", "k0"])], np.ones((1, 3, 1, 1), np.float32), 1),
        ([("Mul", ["x", "k0"])], np.ones((1,), np.float32), 1),
        ([("Relu", ["x"]), ("Mul", ["y0", "k0"])], np.float32(2), 0),
        ([("Mul", ["x", "x"])], np.float32(2), 0),
        ([("Mul", ["x", "z"])], np.float32(2), 0),
        ([("Mul", ["x", "k0"]), ("Add", ["x", "y0"])], np.float32(2), 0),
        ([("Div", ["k0", "x"])], np.float32(2), 0),
        ([("Div", ["x", "k0"])], np.float32(0), 0),
        # Not one value for each channel.
        ([("Mul", ["x", "k0"])], np.ones((3,), np.float32), 0),
        ([("Mul", ["x", "k0"])], np.ones((2, 1, 1), np.float32), 0),
        ([("Mul", ["x", "k0"])], np.ones((3, 1, 2), np.float32), 0),
        ([("Mul", ["x", "k0"])], np.ones((1, 1, 3, 1, 1), np.float32), 0),
        ([("Mul", ["x", "k0"])], np.ones((1, 1, 1, 1, 1), np.float32), 0),
        ([("Mul", ["x", "k0"])], np.int32(2), 0),
    ],
)
def test_steps_end_where_they_are_not_clear(
    nodes: Sequence[tuple[str, Sequence[str]]], constant: NDArray[np.generic], count: int
) -> None:
    made = [helper.make_node(operator, inputs, [f"y{n}"]) for n, (operator, inputs) in enumerate(nodes)]
    assert len(first_steps(made, [np.asarray(constant)])) == count


def test_packed_integers_are_read() -> None:
    # 1, 300 and 7, between two bytes that do not belong to them.
    file = io.BytesIO(b"\xff\x01\xac\x02\x07\x09")
    assert onnx_wire.integers(file, onnx_wire.Span(1, 4)) == [1, 300, 7]
    assert onnx_wire.integers(file, onnx_wire.Span(1, 0)) == []


@pytest.mark.parametrize("by", [1.009, 1.011])
def test_the_std_may_differ_by_a_hundredth(tmp_path: Path, by: float) -> None:
    data = graph(PIXELS, SAME[0])
    assert bool(asked(tmp_path, PIXELS, "graph", data, std=times(STD, by))) is (by > 1.01)


@pytest.mark.parametrize("by", [0.0019, 0.0021])
def test_the_mean_may_differ_by_half_a_pixel(tmp_path: Path, by: float) -> None:
    data = graph(PIXELS, SAME[0])
    mean = [value + by for value in MEAN]
    assert bool(asked(tmp_path, PIXELS, "graph", data, mean=mean)) is (by > 0.002)


@pytest.mark.parametrize(("divisor", "told"), [(7.9, False), (8.1, True)])
def test_normalised_values_are_divided_by_less_than_pixels(tmp_path: Path, divisor: float, told: bool) -> None:
    assert bool(asked(tmp_path, FLOATS, "host", graph(FLOATS, [("Div", divisor)]))) is told


def test_a_manifest_may_state_a_std_of_1(tmp_path: Path) -> None:
    data = graph(PIXELS, SAME[2])
    assert asked(tmp_path, PIXELS, "graph", data, MEAN, (1.0,) * 3)
    assert asked(tmp_path, PIXELS, "graph", data, (0.0,) * 3, (1.0,) * 3)
    assert asked(tmp_path, PIXELS, "none", data, MEAN, (1.0,) * 3)
    assert asked(tmp_path, PIXELS, "none", data, (0.0,) * 3, STD)
    # What follows the mean may belong to the network.
    assert asked(tmp_path, PIXELS, "graph", graph(PIXELS, SAME[0]), MEAN, (1.0,) * 3) == ""


def test_a_manifest_that_states_nothing_cannot_be_contradicted(tmp_path: Path) -> None:
    for steps in SAME:
        assert asked(tmp_path, PIXELS, "none", graph(PIXELS, steps), (0.0,) * 3, (1.0,) * 3) == ""
    floats = [("Sub", MEAN), ("Div", STD)]
    assert asked(tmp_path, FLOATS, "none", graph(FLOATS, floats)) == ""
    assert asked(tmp_path, FLOATS, "none", graph(FLOATS, floats), OTHER)


def test_the_trained_lenet5(tmp_path: Path) -> None:
    folder = REPOSITORY / "lenet5" / "1"
    manifest = manifests.read(folder)
    assert manifest is not None
    data = (folder / "model.onnx").read_bytes()
    with (folder / "model.onnx").open("rb") as file:
        assert len(onnx_head.input_arithmetic(file, "image", 3, 1)) == 2
    assert asked(tmp_path, manifest.input, "graph", data, manifest.preprocessing.mean, manifest.preprocessing.std) == ""
    assert asked(tmp_path, manifest.input, "graph", data, (0.316,), (0.325,))


def test_no_file_contradicts_nothing(tmp_path: Path) -> None:
    spec = Preprocessing("L", None, (8, 8), (0.5,), (0.5,), "graph")
    assert contradiction(spec, PIXELS, tmp_path / "none.onnx") == ""


ONE = graph(PIXELS, SAME[0])


@given(st.lists(st.tuples(st.integers(0, len(ONE) - 1), st.integers(0, 255)), max_size=4), st.integers(0, len(ONE)))
def test_any_bytes_are_read_or_refused(changes: list[tuple[int, int]], size: int) -> None:
    data = bytearray(ONE)
    for position, value in changes:
        data[position] = value
    for content in (data, data[:size]):
        with contextlib.suppress(ValueError):
            assert len(onnx_head.input_arithmetic(io.BytesIO(content), "pixels", 3, 3)) <= 3
