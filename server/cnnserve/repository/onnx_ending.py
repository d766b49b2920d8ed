"""What an ONNX graph ends in: which operator makes the values of an output, and so what these values are.

It is read without the onnx package. Field numbers are those of `onnx.proto`.
"""

from collections.abc import Iterator, Sequence
from typing import BinaryIO, Literal

from cnnserve.repository import onnx_wire
from cnnserve.repository.onnx_wire import Span

Ending = Literal["softmax", "log-softmax", "sigmoid", "unknown"]

_GRAPH, _NODE = 7, 1
_INPUT, _OUTPUT, _OPERATOR, _DOMAIN = 1, 2, 4, 7
# Longest name that is read, in bytes.
_LONGEST = 4096

_OPERATORS: dict[str, Ending] = {"Softmax": "softmax", "LogSoftmax": "log-softmax", "Sigmoid": "sigmoid"}
# What no other activation may follow.
_ENDS = frozenset(("softmax", "sigmoid"))
# They choose, move, name or round values, and keep what each value means.
_KEEP = frozenset(
    (
        *("Identity", "Cast", "Dropout", "QuantizeLinear", "DequantizeLinear"),
        *("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Gather", "Slice"),
    )
)


def endings(file: BinaryIO, outputs: Sequence[str]) -> dict[str, Ending]:
    """Returns what makes the values of each of `outputs`. Raises `ValueError` if the file is not protobuf."""
    # The operator of the node that makes a tensor, "" if it is not ONNX's own, and the node's first input.
    makers: dict[str, tuple[str, str]] = {}
    for number, graph in _spans(file, None):
        if number == _GRAPH:
            for part, node in _spans(file, graph):
                if part == _NODE:
                    makers.update(_made(file, node))
    return {output: _ending(makers, output) for output in outputs}


def contradiction(activation: str, file: BinaryIO, output: str) -> str:
    """Returns how the graph in a file contradicts a manifest's activation, or "" if it does not or is not clear.

    Rows of a softmax are looked at when they are made: they sum to 1.
    """
    if activation == "softmax":
        return ""
    try:
        found = endings(file, [output])[output]
    except ValueError:
        return ""
    return f"activation is {activation}, but the graph ends in a {found}" if found in _ENDS - {activation} else ""


def _ending(makers: dict[str, tuple[str, str]], name: str) -> Ending:
    seen: set[str] = set()
    while name not in seen and name in makers:
        operator, first_input = makers[name]
        if operator in _OPERATORS:
            return _OPERATORS[operator]
        if operator not in _KEEP or not first_input:
            return "unknown"
        seen.add(name)
        name = first_input
    return "unknown"


def _made(file: BinaryIO, node: Span) -> dict[str, tuple[str, str]]:
    """Returns what a node adds to the makers."""
    texts: dict[int, list[str]] = {_INPUT: [], _OUTPUT: [], _OPERATOR: [], _DOMAIN: []}
    for number, place in _spans(file, node):
        if number in texts:
            texts[number].append(onnx_wire.content(file, place, _LONGEST).decode(errors="surrogateescape"))
    domain, operator = "".join(texts[_DOMAIN][-1:]), "".join(texts[_OPERATOR][-1:])
    made = (operator if domain in ("", "ai.onnx") else "", "".join(texts[_INPUT][:1]))
    return dict.fromkeys(texts[_OUTPUT], made)


def _spans(file: BinaryIO, message: Span | None) -> Iterator[tuple[int, Span]]:
    return ((number, value) for number, value in onnx_wire.fields(file, message) if isinstance(value, Span))
