"""Looks for errors in the messages of responses whose status is OK."""

from collections.abc import Callable, Iterator

from .hpack import STATUSES

Judge = Callable[[bytes], str]
OK = STATUSES[0]
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED_BYTES = {_FIXED64: 8, _FIXED32: 4}


def classify(message: bytes) -> str:
    """Returns the status of a ClassifyResponse: that of its first image with an error, else OK."""
    for number, result in _fields(message):
        if number == 3 and isinstance(result, bytes):
            for part, error in _fields(result):
                if part == 2 and isinstance(error, bytes):
                    return _status(error)
    return OK


def classify_stream(message: bytes) -> str:
    """Returns the status of a ClassifyStreamResponse."""
    for number, value in _fields(message):
        if isinstance(value, bytes) and number in (2, 3):
            return classify(value) if number == 2 else _status(value)
    return OK


def infer_stream(message: bytes) -> str:
    """Returns the status of a ModelStreamInferResponse, whose errors are texts without a number."""
    return next(("error in the stream" for number, value in _fields(message) if number == 1 and value), OK)


def _status(error: bytes) -> str:
    code = next((value for number, value in _fields(error) if number == 1), 0)
    return STATUSES[code] if isinstance(code, int) and 0 < code < len(STATUSES) else "UNKNOWN"


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yields number and value of the fields of a protobuf message; the values of fixed size are left out."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        kind = key & 7
        if kind == _VARINT:
            value, position = _varint(message, position)
            yield key >> 3, value
        elif kind == _BYTES:
            length, position = _varint(message, position)
            yield key >> 3, message[position : position + length]
            position += length
        else:
            position += _FIXED_BYTES[kind]


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, position
