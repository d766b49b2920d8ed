"""Finds the files to which an ONNX file refers for the data of its tensors, without the onnx package.

Every tensor counts: initialisers, sparse ones, values of attributes, also in nested graphs and in functions. Field
numbers are those of `onnx.proto`.
"""

from dataclasses import dataclass
from typing import BinaryIO

from cnnserve.repository import onnx_wire
from cnnserve.repository.onnx_wire import Span

# For each kind of message the fields that lead to tensors, and the kind of message that each of them contains.
_INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "nested graph", 2: "nested graph"},
    "function": {7: "nested node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "nested graph": {1: "nested node", 5: "nested tensor", 15: "sparse"},
    "node": {5: "attribute of a node"},
    "nested node": {5: "attribute"},
    "attribute of a node": {5: "tensor", 6: "nested graph", 10: "nested tensor", 11: "nested graph", 22: "sparse"},
    "attribute": {5: "nested tensor", 6: "nested graph", 10: "nested tensor", 11: "nested graph", 22: "sparse"},
    "sparse": {1: "nested tensor", 2: "nested tensor"},
}
_INSIDE["attribute of a node"][23] = _INSIDE["attribute"][23] = "sparse"
_TENSORS = ("tensor", "nested tensor")
_EXTERNAL_DATA = 13
_KEY, _VALUE = 1, 2
# Longest path of a file, and longest key, in bytes.
_LONGEST = 4096


@dataclass(frozen=True)
class Reference:
    """A file to which tensors refer. `nested`: one of them is not in the main graph itself, or is sparse."""

    location: str
    nested: bool


def references(file: BinaryIO) -> list[Reference]:
    """Returns the files to which an ONNX file refers, sorted. Raises `ValueError` if it is no protobuf."""
    found: dict[str, bool] = {}
    # Not by recursion: graphs may be nested as deep as a file allows.
    messages: list[tuple[str, Span | None]] = [("model", None)]
    while messages:
        kind, place = messages.pop()
        inside = _INSIDE.get(kind, {})
        for number, value in onnx_wire.fields(file, place):
            if not isinstance(value, Span):
                continue
            if number in inside:
                messages.append((inside[number], value))
            elif number == _EXTERNAL_DATA and kind in _TENSORS:
                location = _location(file, value)
                if location is not None:
                    found[location] = found.get(location, False) or kind != "tensor"
    return [Reference(location, found[location]) for location in sorted(found)]


def _location(file: BinaryIO, entry: Span) -> str | None:
    texts = {_KEY: "", _VALUE: ""}
    for number, value in onnx_wire.fields(file, entry):
        if number in texts and isinstance(value, Span):
            texts[number] = onnx_wire.content(file, value, _LONGEST).decode()
    return texts[_VALUE] if texts[_KEY] == "location" else None
