"""Changes that an imported ONNX file may need to be served: a symbolic batch, rows of classes, probabilities.

Each function returns a changed copy. Only a run of the copy shows whether it returns what the file does.
"""

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

BATCH = "batch"


def with_batch(model: onnx.ModelProto, input_name: str, batch: int | str) -> onnx.ModelProto:
    """Returns the model with `batch`, a number or a symbol, declared as batch size; the nodes stay the same."""
    changed = _copy(model)
    for value in (*changed.graph.input, *changed.graph.output):
        dims = value.type.tensor_type.shape.dim
        if not dims or (value in changed.graph.input and value.name != input_name):
            continue
        dims[0].Clear()
        if isinstance(batch, int):
            dims[0].dim_value = batch
        else:
            dims[0].dim_param = batch
    # The shapes of intermediate tensors come from the old batch size. Every runtime infers them again.
    changed.graph.ClearField("value_info")
    return changed


def with_free_reshapes(model: onnx.ModelProto, input_name: str, batch: int) -> onnx.ModelProto:
    """Returns the model without the constant `batch` as first size in Reshape nodes that depend on the input.

    Such a Reshape keeps the first size of its input instead. Exporters write the constant if a network computes a shape
    from that of its example.
    """
    changed = _copy(model)
    graph = changed.graph
    computed = {input_name}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    nodes = []
    for index, node in enumerate(graph.node):
        if not computed.isdisjoint(node.input):
            computed.update(node.output)
        if node.op_type == "Reshape" and node.input[0] in computed and node.input[1] in constants:
            shape = numpy_helper.to_array(constants[node.input[1]]).copy()
            if shape.ndim == 1 and shape.size and shape[0] == batch and 0 not in shape:
                shape[0] = 0
                # A node, not an initialiser, because before IR version 4 initialisers must be inputs, too.
                name = f"{node.output[0]}_rows_{index}"
                nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(shape)))
                node.input[1] = name
                # With allowzero, a 0 would mean an empty dimension instead of the input's size.
                node.ClearField("attribute")
        nodes.append(node)
    _set_nodes(graph, nodes)
    return changed


def with_rows(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns the model with its output (N, classes, 1, 1) or (N) as rows (N, classes)."""
    return _appended(model, "Flatten", "rows", axis=1)


def with_softmax(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Returns the model with a softmax after its output (N, classes); the new output is called `name`."""
    # For rows of classes, axis 1 means the same in every opset; the default axis does not.
    return _appended(model, "Softmax", name, axis=1)


def with_sigmoid(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Returns the model with a sigmoid after its output (N, classes); the new output is called `name`."""
    return _appended(model, "Sigmoid", name)


def with_two_classes(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Returns the model with 1 - p and p in place of its output p (N, 1); the new output is called `name`."""
    changed = _copy(model)
    graph = changed.graph
    probability = graph.output[0].name
    one, rest, name = (_free(graph, text) for text in (f"{probability}_one", f"{probability}_rest", name))
    graph.node.extend(
        (
            helper.make_node("Constant", [], [one], value=numpy_helper.from_array(np.ones(1, np.float32))),
            helper.make_node("Sub", [one, probability], [rest]),
            helper.make_node("Concat", [rest, probability], [name], axis=1),
        )
    )
    _declare_output(graph, name, classes=2)
    return changed


def _appended(model: onnx.ModelProto, operator: str, name: str, **attributes: Any) -> onnx.ModelProto:
    changed = _copy(model)
    graph = changed.graph
    output = graph.output[0]
    name = _free(graph, name)
    graph.node.append(helper.make_node(operator, [output.name], [name], **attributes))
    _declare_output(graph, name)
    return changed


def _declare_output(graph: onnx.GraphProto, name: str, classes: int | None = None) -> None:
    """Declares the output `name` (N, classes); the sizes are those of the output before, if it had two."""
    output = graph.output[0]
    before = output.type.tensor_type.shape.dim
    made = helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None, classes])
    dims = made.type.tensor_type.shape.dim
    if before:
        dims[0].CopyFrom(before[0])
    if len(before) > 1 and classes is None:
        dims[1].CopyFrom(before[1])
    output.CopyFrom(made)


def _free(graph: onnx.GraphProto, name: str) -> str:
    taken = {result for node in graph.node for result in node.output} | {value.name for value in graph.input}
    while name in taken:
        name += "_"
    return name


def _set_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    graph.ClearField("node")
    graph.node.extend(copies)


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy
