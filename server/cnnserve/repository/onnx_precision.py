"""The precision with which an ONNX graph computes, read without the onnx package.

A manifest states the precision of its file, and the largest tolerances depend on it. So the graph has to show it: in
what its layers take, of those on which its outputs depend. Field numbers are those of `onnx.proto`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, Literal

from cnnserve.repository import onnx_wire
from cnnserve.repository.onnx_wire import Span

Precision = Literal["fp32", "fp16", "int8"]
# The later ones allow larger tolerances.
_ORDER: tuple[Precision, ...] = ("fp32", "fp16", "int8")

_GRAPH, _FUNCTION = 7, 25
_NODE, _INITIALIZER, _GRAPH_OUTPUT = 1, 5, 12
_FUNCTION_NAME, _FUNCTION_OUTPUT, _FUNCTION_NODE = 1, 5, 7
_INPUT, _OUTPUT, _OPERATOR, _ATTRIBUTE = 1, 2, 4, 5
_INTEGER, _TENSOR, _SUBGRAPH, _SUBGRAPHS = 3, 5, 6, 11
_TYPE, _TENSOR_NAME, _VALUE_NAME = 2, 8, 1
# Data types that have fewer bits than float32: float16 and bfloat16.
_HALVES = frozenset((10, 16))
# Operators with weights. They compute in the type of their inputs, which is the same for all.
_LAYERS = frozenset(
    (b"Conv", b"ConvTranspose", b"Gemm", b"MatMul", b"Einsum", b"FusedConv", b"FusedGemm", b"FusedMatMul")
)
# The same for integers.
_INTEGER_LAYERS = frozenset(
    (
        *(b"ConvInteger", b"MatMulInteger", b"QLinearConv", b"QLinearMatMul", b"QGemm", b"MatMulNBits"),
        *(b"DynamicQuantizeMatMul", b"MatMulIntegerToFloat"),
    )
)
_DEQUANTIZE = b"DequantizeLinear"
# They move values, and keep their type.
_MOVES = frozenset((b"Identity", b"Reshape", b"Transpose", b"Squeeze", b"Unsqueeze", b"Flatten", b"Slice"))
# Longest name that is read, in bytes.
_LONGEST = 4096


@dataclass(frozen=True)
class _Node:
    """`half`: it is a constant or a cast of half precision. `inner`: names that its subgraphs return."""

    operator: bytes = b""
    inputs: list[bytes] = field(default_factory=list)
    half: bool = False
    inner: list[bytes] = field(default_factory=list)


@dataclass(frozen=True)
class _Scope:
    """A graph with its subgraphs, whose names differ from its own, or a function. `halves`: initialisers."""

    makers: dict[bytes, _Node] = field(default_factory=dict)
    halves: set[bytes] = field(default_factory=set)
    outputs: list[bytes] = field(default_factory=list)

    def live(self) -> Iterator[_Node]:
        """Yields the nodes on which the outputs depend, each at least once."""
        names, seen = [*self.outputs], set()
        while names:
            name = names.pop()
            if name not in seen and name in self.makers:
                node = self.makers[name]
                yield node
                names += node.inputs + node.inner
            seen.add(name)

    def precision(self, node: _Node) -> Precision:
        """Returns in what a node computes, as far as its inputs show it."""
        if node.operator in _INTEGER_LAYERS:
            return "int8"
        return max(map(self._of_value, node.inputs), key=_ORDER.index, default="fp32")

    def _of_value(self, name: bytes) -> Precision:
        seen: set[bytes] = set()
        while name not in seen and name not in self.halves:
            seen.add(name)
            node = self.makers.get(name, _Node())
            if node.operator == _DEQUANTIZE:
                return "int8"
            if node.operator not in _MOVES or not node.inputs:
                return "fp16" if node.half else "fp32"
            name = node.inputs[0]
        return "fp16" if name in self.halves else "fp32"


def of_file(file: BinaryIO) -> Precision:
    """Returns "int8" if a layer takes quantised values, "fp16" if one takes constants or casts of half precision.

    Otherwise it returns "fp32". A layer is a node with weights, such as a convolution, on which an output depends; in a
    graph that has none, every such node counts. float16 and bfloat16 are half precision.
    Raises `ValueError` if the file is not protobuf.
    """
    graph, functions = _Scope(), {}
    for number, place in _spans(file, None):
        if number == _GRAPH:
            graph.outputs.extend(_read_graph(file, place, graph))
        elif number == _FUNCTION:
            name, function = _read_function(file, place)
            functions[name] = function
    nodes = [(scope, node) for scope in _called(graph, functions) for node in scope.live()]
    layers = [(scope, node) for scope, node in nodes if node.operator in _LAYERS | _INTEGER_LAYERS]
    return max((scope.precision(node) for scope, node in layers or nodes), key=_ORDER.index, default="fp32")


def contradiction(stated: Precision, file: BinaryIO) -> str:
    """Returns how the graph in a file contradicts a reduced precision, or "" if it does not.

    Only a statement that widens the tolerances is compared.
    """
    if stated == "fp32":
        return ""
    try:
        found = of_file(file)
    except (ValueError, RecursionError):
        return f"onnx.precision is {stated}, but the ONNX file is damaged, so that its precision cannot be seen"
    wider = _ORDER.index(stated) > _ORDER.index(found)
    return f"onnx.precision is {stated}, but the graph computes in {found}" if wider else ""


def _called(graph: _Scope, functions: dict[bytes, _Scope]) -> list[_Scope]:
    """Returns the graph and the functions that it calls, also by others."""
    scopes, left = [graph], dict(functions)
    for scope in scopes:
        # It grows while it is read.
        scopes += [left.pop(node.operator) for node in scope.live() if node.operator in left]
    return scopes


def _read_function(file: BinaryIO, place: Span) -> tuple[bytes, _Scope]:
    name, scope = b"", _Scope()
    for number, part in _spans(file, place):
        if number == _FUNCTION_NAME:
            name = onnx_wire.content(file, part, _LONGEST)
        elif number == _FUNCTION_OUTPUT:
            scope.outputs.append(onnx_wire.content(file, part, _LONGEST))
        elif number == _FUNCTION_NODE:
            _read_node(file, part, scope)
    return name, scope


def _read_graph(file: BinaryIO, place: Span, scope: _Scope) -> list[bytes]:
    """Adds the nodes and constants of a graph to a scope. Returns the names of its outputs."""
    outputs = []
    for number, part in _spans(file, place):
        if number == _NODE:
            _read_node(file, part, scope)
        elif number == _INITIALIZER and _integer(file, part, _TYPE) in _HALVES:
            scope.halves.update(_texts(file, part, _TENSOR_NAME))
        elif number == _GRAPH_OUTPUT:
            outputs += _texts(file, part, _VALUE_NAME)
    return outputs


def _read_node(file: BinaryIO, place: Span, scope: _Scope) -> None:
    operator = b"".join(_texts(file, place, _OPERATOR)[-1:])
    half, inner = False, []
    for number, attribute in _spans(file, place):
        if number == _ATTRIBUTE:
            if operator == b"Cast" and _integer(file, attribute, _INTEGER) in _HALVES:
                half = True
            for kind, value in _spans(file, attribute):
                if kind in (_SUBGRAPH, _SUBGRAPHS):
                    inner += _read_graph(file, value, scope)
                elif kind == _TENSOR and _integer(file, value, _TYPE) in _HALVES:
                    half = True
    node = _Node(operator, _texts(file, place, _INPUT), half, inner)
    scope.makers.update(dict.fromkeys(_texts(file, place, _OUTPUT), node))


def _texts(file: BinaryIO, message: Span, wanted: int) -> list[bytes]:
    return [onnx_wire.content(file, place, _LONGEST) for number, place in _spans(file, message) if number == wanted]


def _spans(file: BinaryIO, message: Span | None) -> Iterator[tuple[int, Span]]:
    return ((number, value) for number, value in onnx_wire.fields(file, message) if isinstance(value, Span))


def _integer(file: BinaryIO, message: Span, wanted: int) -> int:
    return next((v for n, v in onnx_wire.fields(file, message) if n == wanted and isinstance(v, int)), 0)
