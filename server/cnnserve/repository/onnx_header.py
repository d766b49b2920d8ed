"""Reads the IR version and the operator sets of an ONNX file, without the onnx package and without the graph.

In the message ModelProto of `onnx.proto`, field 1 is `ir_version`. Field 8 is `opset_import`; each of its entries has a
domain (field 1) and a version (field 2). All other fields, such as the graph, are skipped.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cnnserve.repository import onnx_wire
from cnnserve.repository.onnx_wire import Span

_IR_VERSION, _OPSET_IMPORT = 1, 8
_DOMAIN, _VERSION = 1, 2
# Longest entry of opset_import that is read, in bytes: a damaged length must not lead to a read of that size.
_LONGEST = 4096

# ONNX Runtime 1.18 (May 2024) and all later versions read this operator set.
PORTABLE_OPSET = 18


@dataclass(frozen=True)
class OnnxHeader:
    """IR version and operator sets by domain; ONNX's own domain is "ai.onnx". Missing values are 0 or left out."""

    ir_version: int
    opsets: dict[str, int]

    def __str__(self) -> str:
        sets = ", ".join(f"opset {version} of {domain}" for domain, version in self.opsets.items())
        return f"IR version {self.ir_version}" + (f" and {sets}" if sets else "")


def read(path: Path) -> OnnxHeader | None:
    """Returns the header of an ONNX file, or None if it is no ONNX file or cannot be read."""
    try:
        with path.open("rb") as file:
            return read_from(file)
    except OSError:
        return None


def read_from(file: BinaryIO) -> OnnxHeader | None:
    """Does the same for an open file."""
    try:
        header = _read(file)
    except (OSError, OverflowError, ValueError):
        return None
    return header if header.ir_version else None


def _read(file: BinaryIO) -> OnnxHeader:
    ir_version, opsets = 0, {}
    for number, value in onnx_wire.fields(file):
        if number == _IR_VERSION and isinstance(value, int):
            ir_version = value
        elif number == _OPSET_IMPORT and isinstance(value, Span) and value.size <= _LONGEST:
            entry = dict(onnx_wire.fields(file, value))
            domain, version = entry.get(_DOMAIN, Span(0, 0)), entry.get(_VERSION)
            if isinstance(domain, Span):
                name = onnx_wire.content(file, domain, _LONGEST).decode()
                opsets[name or "ai.onnx"] = version if isinstance(version, int) else 0
    return OnnxHeader(ir_version, opsets)
