"""The precision that a graph shows, wherever the value or the node that reduces it lies."""

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from cnnserve.repository import onnx_precision
from cnnserve_export import quantize
from support import REPOSITORY, tiny_onnx

HALF = numpy_helper.from_array(np.ones((64, 3), np.float16), "half")
LENET5 = REPOSITORY / "lenet5" / "1" / "model.onnx"
NAMES = ["rows", "weights", "bias"]


def tiny(*before: onnx.NodeProto, layer: onnx.NodeProto | None = None, unused: Sequence[onnx.NodeProto] = ()) -> bytes:
    """Returns the network with a constant `half`, nodes before its layer, another layer, and nodes without effect."""
    model = onnx.load_from_string(tiny_onnx())
    nodes = [*model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend([*unused, *nodes[:2], *before, layer or nodes[2], *nodes[3:]])
    model.graph.initializer.append(HALF)
    data: bytes = model.SerializeToString()
    return data


def gemm(*inputs: str, operator: str = "Gemm", output: str = "logits") -> onnx.NodeProto:
    return helper.make_node(operator, inputs or NAMES, [output])


def node(operator: str, *inputs: str, output: str = "y", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs, [output], **attributes)


def branch(inner: onnx.NodeProto) -> onnx.NodeProto:
    value = helper.make_tensor_value_info(inner.output[0], TensorProto.FLOAT, None)
    graph = helper.make_graph([inner], "g", [], [value])
    return node("If", "c", output="logits", then_branch=graph, else_branch=graph)


def with_functions(data: bytes, **functions: Sequence[onnx.NodeProto]) -> bytes:
    model = onnx.load_from_string(data)
    for name, nodes in functions.items():
        returned = [nodes[-1].output[0]]
        model.functions.append(helper.make_function("own", name, ["x"], returned, nodes, []))
    result: bytes = model.SerializeToString()
    return result


CONSTANT = node("Constant", output="w", value=HALF)
IN_FUNCTION = [CONSTANT, gemm("x", "w", output="z")]
DEQUANTIZE = node("DequantizeLinear", "q", "s")
CASTS = [node("Cast", "rows", to=to) for to in (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.FLOAT)]


@pytest.mark.parametrize(
    ("data", "precision"),
    [
        (tiny_onnx(), "fp32"),
        (tiny(layer=gemm("rows", "half")), "fp16"),
        (tiny(CONSTANT, layer=gemm("rows", "w")), "fp16"),
        (tiny(CASTS[0], layer=gemm("y", "weights")), "fp16"),
        (tiny(CASTS[1], layer=gemm("y", "weights")), "fp16"),
        (tiny(node("Transpose", "half"), layer=gemm("rows", "y", operator="MatMul")), "fp16"),
        (tiny(DEQUANTIZE, layer=gemm("rows", "y")), "int8"),
        (tiny(DEQUANTIZE, node("Reshape", "y", "s", output="z"), layer=gemm("rows", "z", operator="Conv")), "int8"),
        (tiny(DEQUANTIZE, layer=gemm("y", "half")), "int8"),
        (tiny(layer=gemm("a", "b", operator="QGemm")), "int8"),
        # In branches and functions.
        (tiny(layer=branch(gemm("rows", "half", output="z"))), "fp16"),
        (tiny(DEQUANTIZE, layer=branch(gemm("y", "weights", output="z"))), "int8"),
        (with_functions(tiny(layer=gemm("rows", operator="F")), F=IN_FUNCTION), "fp16"),
        (with_functions(tiny(layer=gemm("rows", operator="F")), G=IN_FUNCTION, F=[gemm("x", operator="G")]), "fp16"),
        # A graph without layers.
        (tiny(layer=gemm("rows", "half", operator="Mul")), "fp16"),
        (tiny(DEQUANTIZE, layer=gemm("y", operator="Relu")), "int8"),
        # What no layer takes.
        (tiny(), "fp32"),
        (tiny(unused=[CONSTANT]), "fp32"),
        (tiny(unused=[CASTS[0]]), "fp32"),
        (tiny(unused=[DEQUANTIZE]), "fp32"),
        (tiny(unused=[gemm("rows", "half", output="nothing")]), "fp32"),
        (tiny(unused=[gemm("a", "b", operator="QGemm", output="nothing")]), "fp32"),
        (with_functions(tiny(), F=IN_FUNCTION), "fp32"),
        (tiny(node("Cast", "half", to=TensorProto.FLOAT), layer=gemm("rows", "y")), "fp32"),
        (tiny(CASTS[2], layer=gemm("y", "weights")), "fp32"),
        # Its attribute has the number of float16, but it is no cast.
        (tiny(node("Softmax", "rows", axis=10), layer=gemm("y", "weights")), "fp32"),
        # Circles.
        (tiny(node("Identity", "y"), layer=gemm("y", "weights")), "fp32"),
        (with_functions(tiny(layer=gemm("rows", operator="F")), F=[gemm("x", operator="F")]), "fp32"),
    ],
)
def test_a_graph_shows_its_precision(data: bytes, precision: str) -> None:
    assert onnx_precision.of_file(io.BytesIO(data)) == precision


def test_what_the_exporter_makes(tmp_path: Path) -> None:
    assert onnx_precision.of_file(io.BytesIO(LENET5.read_bytes())) == "fp32"
    quantize.to_fp16(LENET5, tmp_path / "half.onnx")
    assert onnx_precision.of_file(io.BytesIO((tmp_path / "half.onnx").read_bytes())) == "fp16"


def test_only_a_statement_that_widens_tolerances_can_contradict() -> None:
    full, half = LENET5.read_bytes(), tiny(layer=gemm("rows", "half"))
    assert contradiction("fp32", full) == ""
    assert contradiction("fp16", full) == "onnx.precision is fp16, but the graph computes in fp32"
    assert contradiction("fp16", half) == ""
    assert contradiction("fp16", tiny(layer=gemm("a", "b", operator="QGemm"))) == ""
    assert contradiction("int8", half) == "onnx.precision is int8, but the graph computes in fp16"
    assert "the ONNX file is damaged" in contradiction("int8", half[:-1])


def contradiction(stated: onnx_precision.Precision, data: bytes) -> str:
    return onnx_precision.contradiction(stated, io.BytesIO(data))


@given(st.binary(max_size=60))
def test_any_bytes_are_a_precision_or_a_value_error(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert onnx_precision.of_file(io.BytesIO(data)) in ("fp32", "fp16", "int8")
