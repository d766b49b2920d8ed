"""Bounds what a message becomes when it is parsed.

Two bytes can be an empty tensor, which takes a hundred bytes as an object: a message of 63 MiB with 33 million of them
takes 3 GB and 2.4 s of the event loop. So the fields of a message that is not small are counted before it is parsed.
"""

from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from cnnserve.errors import InvalidInput

# A batch of images is one field each, a tensor about ten; nothing that this server answers has more.
MOST_FIELDS = 20_000
# A field takes two bytes at least, so a message of fewer bytes needs no count.
_SMALL_BYTES = 2 * MOST_FIELDS
# Messages in messages, as deep as any of ours go and more.
_MOST_DEPTH = 8
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_SIZES = {_FIXED64: 8, _FIXED32: 4}
_PACKED_NUMBERS = frozenset(
    (
        FieldDescriptor.TYPE_BOOL,
        FieldDescriptor.TYPE_INT32,
        FieldDescriptor.TYPE_INT64,
        FieldDescriptor.TYPE_UINT32,
        FieldDescriptor.TYPE_UINT64,
        FieldDescriptor.TYPE_SINT32,
        FieldDescriptor.TYPE_SINT64,
        FieldDescriptor.TYPE_ENUM,
    )
)


class _Counter:
    """Counts the fields of one message; `wide_bytes` are those of packed numbers, each of which becomes up to eight."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.fields = 0
        self.wide_bytes = 0

    def count(self, at: int, end: int, kind: Any, depth: int = 0) -> None:
        """Counts the fields between two places; stops at bytes that the parser will refuse."""
        by_number = kind.fields_by_number
        while at < end:
            tag, at = self._varint(at, end)
            self.fields += 1
            if self.fields > MOST_FIELDS:
                raise InvalidInput(
                    f"the request has more than {MOST_FIELDS} fields; send tensors as raw_input_contents and fewer "
                    "images in one request"
                )
            wire = tag & 7
            if wire == _VARINT:
                _, at = self._varint(at, end)
            elif wire == _LENGTH:
                size, at = self._varint(at, end)
                self._enter(by_number.get(tag >> 3), at, min(end, at + size), depth)
                at += size
            elif wire in _SIZES:
                at += _SIZES[wire]
            else:
                return

    def _enter(self, field: FieldDescriptor | None, at: int, end: int, depth: int) -> None:
        if field is None:
            return
        if field.message_type is not None and depth < _MOST_DEPTH:
            self.count(at, end, field.message_type, depth + 1)
        elif field.type in _PACKED_NUMBERS:
            self.wide_bytes += end - at

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = shift = 0
        while at < end and shift < 64:
            byte = self.data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
            shift += 7
        # Cut off, or longer than any number: the parser says so.
        return 0, end


def check_fields(data: bytes, kind: Any, most_bytes: int) -> None:
    """Raises `InvalidInput` if a message of `kind` has too many fields, or numbers of more than `most_bytes`."""
    if len(data) <= _SMALL_BYTES:
        return
    counter = _Counter(data)
    counter.count(0, len(data), kind)
    if 8 * counter.wide_bytes > most_bytes:
        raise InvalidInput(
            f"the request has {counter.wide_bytes} bytes of numbers in lists, the limit is {most_bytes // 8}; send the "
            "numbers in raw_input_contents"
        )
