"""The arithmetic with constants at the beginning of an ONNX graph, read without the onnx package.

Field numbers are those of `onnx.proto`.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

from cnnserve.repository import onnx_wire
from cnnserve.repository.onnx_wire import Span

_GRAPH = 7
_NODE, _INITIALIZER = 1, 5
_NODE_INPUT, _NODE_OUTPUT, _NODE_OPERATOR, _NODE_ATTRIBUTE, _NODE_DOMAIN = 1, 2, 4, 5, 7
_ATTRIBUTE_NAME, _TENSOR, _ATTRIBUTE_INTS = 1, 5, 8
_DIMS, _TYPE, _FLOATS, _TENSOR_NAME, _RAW, _DOUBLES = 1, 2, 4, 8, 9, 10
# Formats of the values of raw data, by data type: float, float16 and double.
_FORMATS = {1: "f", 10: "e", 11: "d"}
# Longest name, and largest tensor of constants in bytes: more is no mean of a few channels.
_LONGEST = 4096
# Nodes that are followed. Normalisation takes less than ten.
_MOST_NODES = 32


@dataclass(frozen=True)
class Affine:
    """`x * scale + shift`, with one value of each for every channel."""

    scale: tuple[float, ...]
    shift: tuple[float, ...]

    def then(self, after: "Affine") -> "Affine":
        """Returns this step followed by another one."""
        scales = tuple(a * b for a, b in zip(self.scale, after.scale, strict=True))
        shifts = tuple(s * b + t for s, b, t in zip(self.shift, after.scale, after.shift, strict=True))
        return Affine(scales, shifts)


@dataclass
class _Node:
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    operator: str = ""
    domain: str = ""
    attributes: list[Span] = field(default_factory=list)


def input_arithmetic(file: BinaryIO, name: str, axis: int, channels: int) -> list[Affine]:
    """Returns the steps that the graph applies to its input `name` first, as long as they are clear.

    `axis`: dimension of the channels in the input of four dimensions. The steps end at the first node that does more
    than add, subtract, multiply or divide a constant for each channel. Raises `ValueError` if the file is not protobuf.
    """
    graph = _Graph(file, channels)
    steps = []
    for _ in range(_MOST_NODES):
        consumers = [node for node in graph.nodes if name in node.inputs and node.operator not in ("Shape", "Size")]
        if len(consumers) != 1 or len(consumers[0].outputs) != 1 or consumers[0].domain not in ("", "ai.onnx"):
            break
        node = consumers[0]
        if node.operator == "Transpose":
            order = graph.permutation(node)
            if sorted(order) != [0, 1, 2, 3]:
                break
            axis = order.index(axis)
        elif node.operator in ("Mul", "Div", "Add", "Sub"):
            step = graph.step(node, name, axis)
            if step is None:
                break
            steps.append(step)
        elif node.operator not in ("Cast", "Identity"):
            break
        name = node.outputs[0]
    return steps


class _Graph:
    """The nodes of a graph and the places of its constants. The values of a constant are read when they are needed."""

    def __init__(self, file: BinaryIO, channels: int) -> None:
        self._file = file
        self._channels = channels
        self._constants: dict[str, Span] = {}
        self.nodes: list[_Node] = []
        for number, graph in self._spans(None):
            if number == _GRAPH:
                for part, place in self._spans(graph):
                    if part == _NODE:
                        self._add(self._node(place))
                    elif part == _INITIALIZER:
                        self._constants[self._text(place, _TENSOR_NAME)] = place

    def permutation(self, node: _Node) -> list[int]:
        """Returns the order in which a Transpose puts the dimensions."""
        for attribute in node.attributes:
            if self._text(attribute, _ATTRIBUTE_NAME) == "perm":
                return self._integers(attribute, _ATTRIBUTE_INTS)
        return [3, 2, 1, 0]

    def step(self, node: _Node, name: str, axis: int) -> Affine | None:
        """Returns what an arithmetic node does to its input `name`, or None if the other input is no clear constant."""
        if len(node.inputs) != 2 or node.inputs[0] == node.inputs[1]:
            return None
        first = node.inputs[0] == name
        place = self._constants.get(node.inputs[1 if first else 0])
        values = self._per_channel(place, axis) if place else None
        if values is None or (node.operator == "Div" and (not first or 0 in values)):
            return None
        zeros, ones = (0.0,) * self._channels, (1.0,) * self._channels
        if node.operator == "Mul":
            return Affine(values, zeros)
        if node.operator == "Div":
            return Affine(tuple(1 / value for value in values), zeros)
        if node.operator == "Add":
            return Affine(ones, values)
        minus = tuple(-value for value in values)
        return Affine(ones, minus) if first else Affine((-1.0,) * self._channels, values)

    def _add(self, node: _Node) -> None:
        self.nodes.append(node)
        if node.operator == "Constant" and len(node.outputs) == 1:
            for attribute in node.attributes:
                for number, tensor in self._spans(attribute):
                    if number == _TENSOR:
                        self._constants[node.outputs[0]] = tensor

    def _node(self, place: Span) -> _Node:
        node = _Node()
        for number, value in self._spans(place):
            if number == _NODE_INPUT:
                node.inputs.append(self._decoded(value))
            elif number == _NODE_OUTPUT:
                node.outputs.append(self._decoded(value))
            elif number == _NODE_OPERATOR:
                node.operator = self._decoded(value)
            elif number == _NODE_DOMAIN:
                node.domain = self._decoded(value)
            elif number == _NODE_ATTRIBUTE:
                node.attributes.append(value)
        return node

    def _per_channel(self, tensor: Span, axis: int) -> tuple[float, ...] | None:
        """Returns a constant's value for each channel, or None if it has other dimensions."""
        dims = self._integers(tensor, _DIMS)
        shape = [1] * (4 - len(dims)) + dims
        if len(shape) != 4 or any(size != 1 for dimension, size in enumerate(shape) if dimension != axis):
            return None
        values = self._values(tensor)
        if len(values) != shape[axis] or len(values) not in (1, self._channels):
            return None
        return tuple(values) * self._channels if len(values) == 1 else tuple(values)

    def _values(self, tensor: Span) -> Sequence[float]:
        kind = next((value for number, value in onnx_wire.fields(self._file, tensor) if number == _TYPE), 0)
        if not isinstance(kind, int) or kind not in _FORMATS:
            return ()
        stored = {_RAW: _FORMATS[kind], _FLOATS: "f", _DOUBLES: "d"}
        for number, value in self._spans(tensor):
            if number in stored:
                data, size = onnx_wire.content(self._file, value, _LONGEST), struct.calcsize(stored[number])
                return struct.unpack_from(f"<{len(data) // size}{stored[number]}", data)
        return ()

    def _spans(self, message: Span | None) -> Iterator[tuple[int, Span]]:
        fields = onnx_wire.fields(self._file, message)
        return ((number, value) for number, value in fields if isinstance(value, Span))

    def _text(self, message: Span, wanted: int) -> str:
        return next((self._decoded(value) for number, value in self._spans(message) if number == wanted), "")

    def _decoded(self, place: Span) -> str:
        return onnx_wire.content(self._file, place, _LONGEST).decode()

    def _integers(self, message: Span, wanted: int) -> list[int]:
        """Returns the integers of a field, which may be packed or not."""
        found: list[int] = []
        for number, value in onnx_wire.fields(self._file, message):
            if number == wanted:
                found += [value] if isinstance(value, int) else onnx_wire.integers(self._file, value)
        return found
