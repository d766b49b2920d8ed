"""What ONNX Runtime runs, but the rules of ONNX do not allow."""

import random
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from cnnserve_export import foreign, repairs
from cnnserve_export.errors import ExportError
from support import tiny_onnx

INFO = helper.make_tensor_value_info


def run(model: ModelProto, row: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    answer: np.ndarray = session.run(None, {session.get_inputs()[0].name: row})[0]
    return answer


def branching() -> ModelProto:
    """y = sum of x + 1 if the sum of x is positive, else of x * 2: the branches take names from outside."""

    def branch(operator: str, name: str, other: str) -> onnx.GraphProto:
        nodes = [
            helper.make_node(operator, ["shifted", other], [f"{name}_inner"]),
            helper.make_node("ReduceSum", [f"{name}_inner"], [f"{name}_out"], keepdims=0),
        ]
        return helper.make_graph(nodes, name, [], [INFO(f"{name}_out", TensorProto.FLOAT, [])])

    constants = [
        numpy_helper.from_array(np.float32(value), name) for name, value in (("one", 1), ("two", 2), ("no", 0))
    ]
    nodes = [
        helper.make_node("Add", ["x", "no"], ["shifted"]),
        helper.make_node("ReduceSum", ["shifted"], ["total"], keepdims=0),
        helper.make_node("Greater", ["total", "no"], ["positive"]),
        helper.make_node(
            "If",
            ["positive"],
            ["y"],
            then_branch=branch("Add", "then", "one"),
            else_branch=branch("Mul", "else", "two"),
        ),
    ]
    graph = helper.make_graph(
        nodes, "g", [INFO("x", TensorProto.FLOAT, [3])], [INFO("y", TensorProto.FLOAT, [])], constants
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def shuffled(model: ModelProto, seed: int) -> ModelProto:
    copy = ModelProto.FromString(model.SerializeToString())
    chance = random.Random(seed)
    graphs = [copy.graph]
    for graph in graphs:
        nodes = list(graph.node)
        graphs += [attribute.g for node in nodes for attribute in node.attribute if attribute.HasField("g")]
    for graph in reversed(graphs):
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node]
        chance.shuffle(nodes)
        del graph.node[:]
        graph.node.extend(nodes)
    return copy


@pytest.mark.parametrize("seed", range(6))
def test_nodes_are_sorted_in_subgraphs_too(seed: int) -> None:
    model = branching()
    mixed = shuffled(model, seed)
    was_sorted = mixed == model
    assert repairs.sort_nodes(mixed) is not was_sorted
    onnx.checker.check_model(mixed)
    for row in (np.ones(3, np.float32), -np.ones(3, np.float32)):
        assert run(mixed, row) == run(model, row) == (6 if row.sum() > 0 else -6)
    assert not repairs.sort_nodes(mixed)


def test_what_is_sorted_stays_as_it_is() -> None:
    for model in (branching(), onnx.load_model_from_string(tiny_onnx())):
        before = model.SerializeToString(deterministic=True)
        assert not repairs.sort_nodes(model)
        assert model.SerializeToString(deterministic=True) == before


def test_functions_are_sorted() -> None:
    body = [helper.make_node("Neg", ["a"], ["b"]), helper.make_node("Abs", ["x"], ["a"])]
    model = branching()
    model.functions.append(helper.make_function("my", "F", ["x"], ["b"], body, [helper.make_opsetid("", 18)]))
    assert repairs.sort_nodes(model)
    assert [node.op_type for node in model.functions[0].node] == ["Abs", "Neg"]


def test_a_circle_is_named() -> None:
    model = branching()
    model.graph.node[0].input[1] = "total"
    with pytest.raises(ExportError, match="depend on each other in a circle, Add '' among them"):
        repairs.sort_nodes(model)


def test_one_output_is_kept_with_what_it_needs() -> None:
    model = branching()
    model.graph.node.append(helper.make_node("Mul", ["total", "two"], ["twice"]))
    model.graph.output.append(INFO("twice", TensorProto.FLOAT, []))
    assert repairs.keep_output(model, "twice")
    assert [node.op_type for node in model.graph.node] == ["Add", "ReduceSum", "Mul"]
    assert [tensor.name for tensor in model.graph.initializer] == ["two", "no"]
    onnx.checker.check_model(model)
    assert run(model, np.ones(3, np.float32)) == 6
    assert not repairs.keep_output(model, "twice")


def half(model: ModelProto) -> ModelProto:
    """The branching model in float16, as `.half()` exports it."""
    copy = ModelProto.FromString(model.SerializeToString())
    for value in (*copy.graph.input, *copy.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    for tensor in copy.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for node in copy.graph.node:
        for attribute in node.attribute:
            for output in attribute.g.output:
                output.type.tensor_type.elem_type = TensorProto.FLOAT16
    return copy


def test_float16_tensors_get_casts() -> None:
    model = half(branching())
    # The input is used in a branch, too.
    for attribute in model.graph.node[3].attribute:
        attribute.g.node[0].input[0] = "x"
    row = np.array([0.1, 2, -0.3], np.float32)
    expected = run(model, row.astype(np.float16))
    assert repairs.take_floats(model, "x")
    assert repairs.return_floats(model)
    onnx.checker.check_model(model, full_check=True)
    answer = run(model, row)
    assert (answer.dtype, answer) == (np.float32, expected.astype(np.float32))
    assert (model.graph.input[0].name, model.graph.output[0].name) == ("x", "y")
    assert not repairs.take_floats(model, "x")
    assert not repairs.return_floats(model)


# What `foreign.read` makes of it


def written(path: Path, model: ModelProto) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def with_outputs(*others: onnx.ValueInfoProto) -> ModelProto:
    model = onnx.load_model_from_string(tiny_onnx())
    model.graph.node.append(helper.make_node("ArgMax", ["probabilities"], ["label"], axis=1, keepdims=0))
    model.graph.node.append(helper.make_node("Identity", ["probabilities"], ["again"]))
    model.graph.output.extend(others)
    return model


LABEL = INFO("label", TensorProto.INT64, ["batch"])
AGAIN = INFO("again", TensorProto.FLOAT, ["batch", 3])


def test_a_label_beside_the_probabilities_is_left_out(tmp_path: Path) -> None:
    read = foreign.read(written(tmp_path / "m.onnx", with_outputs(LABEL)))
    assert [output.name for output in read.model.graph.output] == ["probabilities"]
    assert read.changes == ("output 'probabilities' kept, 1 left out",)
    assert "ArgMax" not in [node.op_type for node in read.model.graph.node]


def test_among_several_outputs_of_floats_the_user_chooses(tmp_path: Path) -> None:
    path = written(tmp_path / "m.onnx", with_outputs(LABEL, AGAIN))
    with pytest.raises(ExportError, match=r"3 outputs \('probabilities', 'label', 'again'\), 2 of them with floats"):
        foreign.read(path)
    assert foreign.read(path, "again").model.graph.output[0].name == "again"
    with pytest.raises(ExportError, match="has no output 'x'; its outputs are 'probabilities', 'label', 'again'"):
        foreign.read(path, "x")
    with pytest.raises(ExportError, match="the output 'label' is int64"):
        foreign.read(path, "label")


def test_a_file_that_needs_nothing_is_unaltered(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(tiny_onnx())
    assert (foreign.read(path).data, foreign.read(path).changes) == (tiny_onnx(), ())


def test_an_unsorted_file_is_sorted(tmp_path: Path) -> None:
    model = onnx.load_model_from_string(tiny_onnx())
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in reversed(model.graph.node)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    read = foreign.read(written(tmp_path / "m.onnx", model))
    assert read.changes == ("nodes sorted",)
    assert onnx.load_model_from_string(read.data) == onnx.load_model_from_string(tiny_onnx())
