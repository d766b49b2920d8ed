"""The precision with which an ONNX graph computes, read without the onnx package.

A manifest states the precision of its file, and the largest tolerance depends on it. So the graph has to show it.
Field numbers are those of `onnx.proto`.
"""

from collections.abc import Iterator
from typing import BinaryIO, Literal

from cnnserve.repository import onnx_wire
from cnnserve.repository.onnx_wire import Span

Precision = Literal["fp32", "fp16", "int8"]

_GRAPH, _FUNCTION = 7, 25
_NODE, _INITIALIZER, _FUNCTION_NODE = 1, 5, 7
_OPERATOR, _ATTRIBUTE = 4, 5
_INTEGER, _TENSOR, _SUBGRAPH, _TENSORS, _SUBGRAPHS = 3, 5, 6, 10, 11
_TYPE = 2
# Data types that have fewer bits than float32: float16 and bfloat16.
_HALVES = frozenset((10, 16))
_QUANTIZED = frozenset(
    (
        *(b"QuantizeLinear", b"DynamicQuantizeLinear", b"DequantizeLinear", b"ConvInteger", b"MatMulInteger"),
        *(b"QLinearConv", b"QLinearMatMul", b"QGemm", b"MatMulNBits", b"DynamicQuantizeMatMul"),
    )
)
# Longest name of an operator that is read, in bytes.
_LONGEST = 4096


def of_file(file: BinaryIO) -> Precision:
    """Returns "int8" if a node quantises, "fp16" if a constant or a cast is float16 or bfloat16, otherwise "fp32".

    Raises `ValueError` if the file is not protobuf.
    """
    halves = False
    for number, place in _spans(file, None):
        if number in (_GRAPH, _FUNCTION):
            node = _NODE if number == _GRAPH else _FUNCTION_NODE
            for found in _precisions(file, place, node):
                if found == "int8":
                    return "int8"
                halves = True
    return "fp16" if halves else "fp32"


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
    return "" if found != "fp32" else f"onnx.precision is {stated}, but the graph computes in fp32"


def _precisions(file: BinaryIO, graph: Span, node: int) -> Iterator[Precision]:
    """Yields the reduced precision of each constant and each node that has one."""
    for number, place in _spans(file, graph):
        if number == node:
            yield from _of_node(file, place)
        elif number == _INITIALIZER and node == _NODE and _integer(file, place, _TYPE) in _HALVES:
            yield "fp16"


def _of_node(file: BinaryIO, node: Span) -> Iterator[Precision]:
    operator, attributes = b"", []
    for number, place in _spans(file, node):
        if number == _OPERATOR:
            operator = onnx_wire.content(file, place, _LONGEST)
        elif number == _ATTRIBUTE:
            attributes.append(place)
    if operator in _QUANTIZED:
        yield "int8"
    for attribute in attributes:
        if operator in (b"Cast", b"CastLike") and _integer(file, attribute, _INTEGER) in _HALVES:
            yield "fp16"
        for number, place in _spans(file, attribute):
            if number in (_SUBGRAPH, _SUBGRAPHS):
                yield from _precisions(file, place, _NODE)
            elif number in (_TENSOR, _TENSORS) and _integer(file, place, _TYPE) in _HALVES:
                yield "fp16"


def _spans(file: BinaryIO, message: Span | None) -> Iterator[tuple[int, Span]]:
    return ((number, value) for number, value in onnx_wire.fields(file, message) if isinstance(value, Span))


def _integer(file: BinaryIO, message: Span, wanted: int) -> int:
    return next((v for n, v in onnx_wire.fields(file, message) if n == wanted and isinstance(v, int)), 0)
