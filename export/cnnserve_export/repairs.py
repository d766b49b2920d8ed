"""What ONNX Runtime runs, but ONNX's rules or the server do not allow: unsorted nodes, float16 tensors, more outputs.

Each function changes the model in place and returns whether it changed anything. The file computes the same as before.
"""

import heapq
from collections.abc import Iterable, Iterator
from typing import Any

import onnx
from onnx import helper

from cnnserve_export.errors import ExportError


def sort_nodes(model: onnx.ModelProto) -> bool:
    """Sorts the nodes of all graphs and functions, so that each node comes after those whose outputs it uses.

    Nodes that are in order keep their places. Raises `ExportError` if nodes depend on each other in a circle.
    """
    changed = [_sort_graph(model.graph)]
    changed += [_sort(function.node, function.name) for function in model.functions]
    return any(changed)


def keep_output(model: onnx.ModelProto, name: str) -> bool:
    """Removes all outputs but `name`, and the nodes and initialisers that only they need."""
    graph = model.graph
    if [output.name for output in graph.output] == [name]:
        return False
    kept = next(output for output in graph.output if output.name == name)
    copy = onnx.ValueInfoProto.FromString(kept.SerializeToString())
    graph.ClearField("output")
    graph.output.append(copy)
    needed = {name}
    nodes = []
    for node in reversed(graph.node):
        if not needed.isdisjoint(node.output):
            needed.update(_used(node))
            nodes.append(node)
    _replace(graph.node, reversed(nodes))
    _replace(graph.initializer, [tensor for tensor in graph.initializer if tensor.name in needed])
    return True


def take_floats(model: onnx.ModelProto, name: str) -> bool:
    """Makes a float16 input a float32 input of the same name, with a cast behind it."""
    graph = model.graph
    value = next(value for value in graph.input if value.name == name)
    if value.type.tensor_type.elem_type != onnx.TensorProto.FLOAT16:
        return False
    inner = _free(graph, f"{name}_float16")
    for node in graph.node:
        _rename(node, name, inner)
    # An output may be the input itself, which then goes through the cast like everything else.
    for output in graph.output:
        if output.name == name:
            raise ExportError(f"the input {name!r} is an output as well; import a classifier")
    value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    nodes = [helper.make_node("Cast", [name], [inner], to=onnx.TensorProto.FLOAT16), *graph.node]
    _replace(graph.node, nodes)
    graph.ClearField("value_info")
    return True


def return_floats(model: onnx.ModelProto) -> bool:
    """Makes the float16 output a float32 output of the same name, with a cast in front."""
    graph = model.graph
    output = graph.output[0]
    if output.type.tensor_type.elem_type != onnx.TensorProto.FLOAT16:
        return False
    name = output.name
    inner = _free(graph, f"{name}_float16")
    for node in graph.node:
        _rename(node, name, inner)
        for index, result in enumerate(node.output):
            if result == name:
                node.output[index] = inner
    output.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    graph.node.append(helper.make_node("Cast", [inner], [name], to=onnx.TensorProto.FLOAT))
    graph.ClearField("value_info")
    return True


def _sort_graph(graph: onnx.GraphProto) -> bool:
    inner = [_sort_graph(nested) for node in graph.node for nested in _graphs(node)]
    return any([_sort(graph.node, graph.name), *inner])


def _sort(nodes: Any, where: str) -> bool:
    ordered: list[onnx.NodeProto] = list(nodes)
    maker = {result: index for index, node in enumerate(ordered) for result in node.output if result}
    needs = [{maker[name] for name in _used(node) if name in maker} for node in ordered]
    if all(max(before, default=-1) < index for index, before in enumerate(needs)):
        return False
    users: list[list[int]] = [[] for _ in ordered]
    for index, before in enumerate(needs):
        for other in before:
            users[other].append(index)
    missing = [len(before) for before in needs]
    ready = [index for index, count in enumerate(missing) if not count]
    done = []
    while ready:
        # The earliest first: what was sorted stays as it was.
        index = heapq.heappop(ready)
        done.append(index)
        for user in users[index]:
            missing[user] -= 1
            if not missing[user]:
                heapq.heappush(ready, user)
    if len(done) < len(ordered):
        stuck = next(node for index, node in enumerate(ordered) if missing[index])
        raise ExportError(
            f"nodes of {where!r} depend on each other in a circle, {stuck.op_type} {stuck.name!r} among them; export "
            "the file again"
        )
    _replace(nodes, [ordered[index] for index in done])
    return True


def _used(node: onnx.NodeProto) -> Iterator[str]:
    """The names that a node needs from outside: its inputs, and what its graphs do not make themselves."""
    yield from (name for name in node.input if name)
    for graph in _graphs(node):
        made = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
        made |= {result for inner in graph.node for result in inner.output}
        names = (name for inner in graph.node for name in _used(inner))
        yield from (name for name in names if name not in made)
        # A branch may hand on what it takes from outside.
        yield from (output.name for output in graph.output if output.name not in made)


def _graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _rename(node: onnx.NodeProto, name: str, new: str) -> None:
    """Replaces a name that a node and its graphs take from outside."""
    for index, used in enumerate(node.input):
        if used == name:
            node.input[index] = new
    for graph in _graphs(node):
        # A graph's own value of the same name hides the outer one; ONNX forbids it.
        for inner in graph.node:
            _rename(inner, name, new)
        for output in graph.output:
            if output.name == name:
                output.name = new


def _free(graph: onnx.GraphProto, name: str) -> str:
    taken = {result for node in graph.node for result in node.output} | {value.name for value in graph.input}
    taken |= {tensor.name for tensor in graph.initializer} | {value.name for value in graph.output}
    while name in taken:
        name += "_"
    return name


def _replace(field: Any, items: Iterable[Any]) -> None:
    """Replaces what a repeated field holds. The items may be its own."""
    copies = [type(item).FromString(item.SerializeToString()) for item in items]
    del field[:]
    field.extend(copies)
