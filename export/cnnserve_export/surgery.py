"""The few changes that a foreign file may need to be served: a symbolic batch, rows of classes, a softmax.

Each makes a new model that nothing is claimed about; whether it answers what the file did is proved by running it.
"""

import onnx
from onnx import helper, numpy_helper

BATCH = "batch"


def with_batch(model: onnx.ModelProto, input_name: str, batch: int | str) -> onnx.ModelProto:
    """The model with this batch dimension declared, a number or a symbol; what its nodes compute stays."""
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
    # Shapes of what is between were inferred from the old batch; every runtime infers them again.
    changed.graph.ClearField("value_info")
    return changed


def with_free_reshapes(model: onnx.ModelProto, input_name: str, batch: int) -> onnx.ModelProto:
    """The model where no Reshape of what comes from the input begins with the constant `batch`.

    It takes the first size of what it reshapes instead. Exporters write that constant where a network computes a shape
    from its example's.
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
                # A node, not an initialiser: before IR 4 those must be inputs as well.
                name = f"{node.output[0]}_rows_{index}"
                nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(shape)))
                node.input[1] = name
                # With allowzero a 0 is a size of nothing, not the input's.
                node.ClearField("attribute")
        nodes.append(node)
    _set_nodes(graph, nodes)
    return changed


def with_rows(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its output (N, classes, 1, 1) flattened to (N, classes)."""
    return _appended(model, "Flatten", "rows")


def with_softmax(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The model with a softmax over the classes behind its output (N, classes), which is then called `name`."""
    return _appended(model, "Softmax", name)


def _appended(model: onnx.ModelProto, operator: str, name: str) -> onnx.ModelProto:
    changed = _copy(model)
    graph = changed.graph
    output = graph.output[0]
    dims = output.type.tensor_type.shape.dim
    batch, classes = (dims[0], dims[1]) if len(dims) > 1 else (None, None)
    taken = {result for node in graph.node for result in node.output} | {value.name for value in graph.input}
    while name in taken:
        name += "_"
    # Axis 1 means the same in every opset for rows of classes; the default does not.
    graph.node.append(helper.make_node(operator, [output.name], [name], axis=1))
    made = helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None, None])
    if batch is not None and classes is not None:
        made.type.tensor_type.shape.dim[0].CopyFrom(batch)
        made.type.tensor_type.shape.dim[1].CopyFrom(classes)
    output.CopyFrom(made)
    return changed


def _set_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    graph.ClearField("node")
    graph.node.extend(copies)


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy
