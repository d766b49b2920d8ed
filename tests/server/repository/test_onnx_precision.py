"""The precision that a graph shows, wherever the value or the node that reduces it lies."""

import contextlib
import io
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from cnnserve.repository import onnx_precision
from cnnserve_export import quantize
from support import REPOSITORY, tiny_onnx

HALF = numpy_helper.from_array(np.ones(1, np.float16), "half")
LENET5 = REPOSITORY / "lenet5" / "1" / "model.onnx"


def with_nodes(*nodes: onnx.NodeProto) -> bytes:
    model = onnx.load_from_string(tiny_onnx())
    model.graph.node.extend(nodes)
    data: bytes = model.SerializeToString()
    return data


def branch(node: onnx.NodeProto) -> onnx.NodeProto:
    graph = helper.make_graph([node], "g", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    return helper.make_node("If", ["c"], ["z"], then_branch=graph, else_branch=graph)


def with_function(node: onnx.NodeProto) -> bytes:
    model = onnx.load_from_string(tiny_onnx())
    model.functions.append(helper.make_function("own", "F", ["x"], ["y"], [node], [helper.make_opsetid("", 18)]))
    data: bytes = model.SerializeToString()
    return data


def with_constant() -> bytes:
    model = onnx.load_from_string(tiny_onnx())
    model.graph.initializer.append(HALF)
    data: bytes = model.SerializeToString()
    return data


QUANTIZE = helper.make_node("QuantizeLinear", ["x", "s"], ["y"])
CASTS = [helper.make_node("Cast", ["x"], ["y"], to=to) for to in (TensorProto.FLOAT16, TensorProto.BFLOAT16)]
CONSTANT = helper.make_node("Constant", [], ["y"], value=HALF)


@pytest.mark.parametrize(
    ("data", "precision"),
    [
        (tiny_onnx(), "fp32"),
        (with_nodes(helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)), "fp32"),
        # Its attribute has the number of float16, but it is no cast.
        (with_nodes(helper.make_node("Softmax", ["x"], ["y"], axis=10)), "fp32"),
        (with_constant(), "fp16"),
        (with_nodes(CONSTANT), "fp16"),
        (with_nodes(CASTS[0]), "fp16"),
        (with_nodes(CASTS[1]), "fp16"),
        (with_nodes(branch(CASTS[0])), "fp16"),
        (with_function(CONSTANT), "fp16"),
        (with_nodes(QUANTIZE), "int8"),
        (with_nodes(branch(QUANTIZE)), "int8"),
        (with_function(QUANTIZE), "int8"),
        (with_nodes(CASTS[0], QUANTIZE), "int8"),
    ],
)
def test_a_graph_shows_its_precision(data: bytes, precision: str) -> None:
    assert onnx_precision.of_file(io.BytesIO(data)) == precision


def test_what_the_exporter_makes(tmp_path: Path) -> None:
    assert onnx_precision.of_file(io.BytesIO(LENET5.read_bytes())) == "fp32"
    quantize.to_fp16(LENET5, tmp_path / "half.onnx")
    assert onnx_precision.of_file(io.BytesIO((tmp_path / "half.onnx").read_bytes())) == "fp16"


def test_only_a_statement_that_widens_tolerances_can_contradict() -> None:
    full, half = LENET5.read_bytes(), with_constant()
    assert contradiction("fp32", full) == ""
    assert contradiction("fp16", full) == "onnx.precision is fp16, but the graph computes in fp32"
    assert contradiction("int8", half) == ""
    assert "the ONNX file is damaged" in contradiction("int8", half[:-1])


def contradiction(stated: onnx_precision.Precision, data: bytes) -> str:
    return onnx_precision.contradiction(stated, io.BytesIO(data))


@given(st.binary(max_size=60))
def test_any_bytes_are_a_precision_or_a_value_error(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert onnx_precision.of_file(io.BytesIO(data)) in ("fp32", "fp16", "int8")
