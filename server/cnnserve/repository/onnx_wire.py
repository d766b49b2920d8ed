"""Reads protobuf fields of an ONNX file, without the onnx package and without reading what is skipped.

An ONNX file is a protobuf message (ModelProto in `onnx.proto`). The modules that use this one name its field numbers.
For a file in memory, pass an `io.BytesIO`.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED_SIZES = {_FIXED64: 8, _FIXED32: 4}


@dataclass(frozen=True)
class Span:
    """The place of a field's content in the file, in bytes: a message, a text, packed numbers or raw data."""

    start: int
    size: int


def fields(file: BinaryIO, message: Span | None = None) -> Iterator[tuple[int, int | Span]]:
    """Yields number and value of each field of a message, by default of the whole file, in their order.

    A value is an integer or the place of the content. Raises `ValueError` if the file is not protobuf.
    """
    if message is None:
        message = Span(0, file.seek(0, os.SEEK_END))
    position, end = message.start, message.start + message.size
    while position < end:
        # The caller may have read elsewhere meanwhile.
        file.seek(position)
        number, kind = divmod(_varint(file), 8)
        value: int | Span
        if kind == _VARINT:
            value = _varint(file)
            position = file.tell()
        elif kind in _FIXED_SIZES or kind == _BYTES:
            size = _varint(file) if kind == _BYTES else _FIXED_SIZES[kind]
            value = Span(file.tell(), size)
            position = value.start + size
        else:
            raise ValueError(f"not protobuf: unknown wire type {kind}")
        if position > end:
            raise ValueError(f"not protobuf: a field ends at byte {position}, its message at byte {end}")
        yield number, value


def integers(file: BinaryIO, place: Span) -> list[int]:
    """Returns the integers that are packed at a place. Raises `ValueError` if the file is not protobuf."""
    found = []
    file.seek(place.start)
    while file.tell() < place.start + place.size:
        found.append(_varint(file))
    return found


def content(file: BinaryIO, place: Span, limit: int) -> bytes:
    """Returns the bytes at a place. Raises `ValueError` if there are more than `limit`, or if the file is cut short."""
    if place.size > limit:
        raise ValueError(f"a field has {place.size} bytes, expected at most {limit}")
    file.seek(place.start)
    data = file.read(place.size)
    if len(data) < place.size:
        raise ValueError("not protobuf: the file ends inside a field")
    return data


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise ValueError("not protobuf: the file ends inside a field")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise ValueError("not protobuf: an integer has more than ten bytes")
