"""What a graph ends in, read without the onnx package."""

import contextlib
import io

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from cnnserve.repository import onnx_ending
from cnnserve.repository.onnx_ending import Ending


def ending(model: onnx.ModelProto) -> Ending:
    name = model.graph.output[0].name
    return onnx_ending.endings(io.BytesIO(model.SerializeToString()), [name])[name]


def graph(*operators: str) -> onnx.ModelProto:
    nodes = [helper.make_node(operator, [f"v{index}"], [f"v{index + 1}"]) for index, operator in enumerate(operators)]
    value = helper.make_tensor_value_info
    last = f"v{len(operators)}"
    made = helper.make_graph(nodes, "g", [value("v0", TensorProto.FLOAT, [1])], [value(last, TensorProto.FLOAT, [1])])
    return helper.make_model(made)


@pytest.mark.parametrize(
    ("operators", "expected"),
    [
        (["Relu", "Softmax"], "softmax"),
        (["Softmax", "Relu"], "unknown"),
        (["Sigmoid", "Flatten", "Identity", "Cast"], "sigmoid"),
        (["LogSoftmax", "Squeeze"], "log-softmax"),
        (["Identity", "Reshape"], "unknown"),
        (["ArgMax"], "unknown"),
    ],
)
def test_what_a_graph_ends_in(operators: list[str], expected: str) -> None:
    assert ending(graph(*operators)) == expected


@pytest.mark.parametrize(
    ("stated", "operator", "contradicts"),
    [
        ("none", "Softmax", True),
        ("none", "Sigmoid", True),
        ("sigmoid", "Softmax", True),
        ("sigmoid", "Sigmoid", False),
        # What Classify makes of the logarithms of probabilities are these probabilities.
        ("none", "LogSoftmax", False),
        ("none", "Gemm", False),
        # The self-test looks at the rows.
        ("softmax", "Sigmoid", False),
    ],
)
def test_what_contradicts_an_activation(stated: str, operator: str, contradicts: bool) -> None:
    file = io.BytesIO(graph(operator, "Identity").SerializeToString())
    said = f"activation is {stated}, but the graph ends in a {operator.lower()}" if contradicts else ""
    assert onnx_ending.contradiction(stated, file, "v2") == said
    assert onnx_ending.contradiction(stated, io.BytesIO(b"no model"), "v2") == ""


def test_an_operator_of_another_domain_is_not_taken_for_one_of_onnx() -> None:
    model = graph("Softmax")
    model.graph.node[0].domain = "my.ops"
    assert ending(model) == "unknown"


def test_a_graph_that_bites_its_tail_ends_nowhere() -> None:
    model = graph("Identity", "Identity")
    model.graph.node[0].input[0] = "v2"
    assert ending(model) == "unknown"


@given(st.binary(max_size=60))
def test_any_bytes_have_an_ending_or_are_a_value_error(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert onnx_ending.endings(io.BytesIO(data), ["y"]) == {"y": "unknown"}
