"""Reads the IR version and the operator sets of an ONNX file, without the onnx package and without the graph.

An ONNX file is a protobuf message (ModelProto in `onnx.proto`). Field 1 is `ir_version`. Field 8 is `opset_import`;
each of its entries has a domain (field 1) and a version (field 2). All other fields, such as the graph, are skipped.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
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
            header = _read(file)
    except (OSError, OverflowError, ValueError):
        return None
    return header if header.ir_version else None


def _read(file: BinaryIO) -> OnnxHeader:
    ir_version, opsets = 0, {}
    for field, value in _fields(file, frozenset({_OPSET_IMPORT})):
        if field == _IR_VERSION and isinstance(value, int):
            ir_version = value
        elif field == _OPSET_IMPORT and isinstance(value, bytes):
            entry = dict(_fields(io.BytesIO(value), frozenset({_DOMAIN})))
            domain, version = entry.get(_DOMAIN, b""), entry.get(_VERSION, 0)
            if isinstance(domain, bytes) and isinstance(version, int):
                opsets[domain.decode() or "ai.onnx"] = version
    return OnnxHeader(ir_version, opsets)


def _fields(file: BinaryIO, wanted: frozenset[int]) -> Iterator[tuple[int, int | bytes]]:
    """Yields integers, and the bytes of the fields in `wanted`, by field number; skips other fields.

    Raises `ValueError` if the file is not protobuf.
    """
    while (key := _varint(file)) is not None:
        field, kind = key >> 3, key & 7
        if kind == _VARINT:
            yield field, _needed(_varint(file))
        elif kind == _BYTES:
            size = _needed(_varint(file))
            if field in wanted and size <= _LONGEST:
                yield field, file.read(size)
            else:
                file.seek(size, io.SEEK_CUR)
        elif kind in (_FIXED64, _FIXED32):
            file.seek(8 if kind == _FIXED64 else 4, io.SEEK_CUR)
        else:
            raise ValueError(f"not protobuf: unknown wire type {kind}")


def _varint(file: BinaryIO) -> int | None:
    """Returns the next variable-length integer, or None at the end of the file."""
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            return None
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise ValueError("not protobuf: an integer has more than ten bytes")


def _needed(value: int | None) -> int:
    if value is None:
        raise ValueError("not protobuf: the file ends inside a field")
    return value
