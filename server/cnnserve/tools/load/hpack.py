"""Reads `grpc-status` from the header blocks of HTTP/2 responses, and nothing else."""

import re

# The statuses of gRPC by their numbers.
STATUSES = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip
NO_STATUS = "no status"
_STATIC_ENTRIES = 61
# Of the table that both sides fill; 4,096 bytes hold at most 128 entries.
_KEPT = 128
# The Huffman code of RFC 7541 for the characters that matter.
_CODES = {
    "0": "00000", "1": "00001", "2": "00010", "3": "011001", "4": "011010", "5": "011011", "6": "011100",
    "7": "011101", "8": "011110", "9": "011111", "-": "010110", "a": "00011", "c": "00100", "g": "100110",
    "p": "101011", "r": "101100", "s": "01000", "t": "01001", "u": "101101",
}  # fmt: skip


def _packed(text: str) -> bytes:
    bits = "".join(_CODES[character] for character in text)
    bits += "1" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


_NAMES = {b"\0grpc-status", b"\1" + _packed("grpc-status")}
_VALUES = {
    mark + data: name
    for number, name in enumerate(STATUSES)
    for mark, data in ((b"\0", str(number).encode()), (b"\1", _packed(str(number))))
}
_ONLY_INDEXED = re.compile(rb"[\x81-\xfe]+", re.DOTALL)


class StatusReader:
    """Reads the header blocks of one connection, all and in their order, because later blocks refer to earlier ones."""

    def __init__(self) -> None:
        # Newest first: name and value of each entry, with a byte before each that says whether it is Huffman-coded.
        self._table: list[tuple[bytes, bytes]] = []
        # The status of blocks that consist of references to the table, until the table changes.
        self._known: dict[bytes, str] = {}
        self._changed = False

    def read(self, block: bytes) -> str:
        """Returns the name of the block's status, or `NO_STATUS` if the block has none."""
        known = self._known.get(block)
        if known is not None:
            return known
        status, position = NO_STATUS, 0
        while position < len(block):
            entry, position = self._entry(block, position)
            if entry is not None and entry[0] in _NAMES:
                status = _VALUES.get(entry[1], NO_STATUS)
        if self._changed or len(self._known) > _KEPT:
            self._known.clear()
            self._changed = False
        elif _ONLY_INDEXED.fullmatch(block):
            self._known[block] = status
        return status

    def _entry(self, block: bytes, position: int) -> tuple[tuple[bytes, bytes] | None, int]:
        """Returns one header, or None if it comes from the static table, and the position behind it."""
        first = block[position]
        if first & 0x80:
            index, position = _integer(block, position, 7)
            return self._at(index), position
        if first & 0xE0 == 0x20:  # the size of the table changes; what falls out is not referred to any more
            return None, _integer(block, position, 5)[1]
        is_kept = bool(first & 0x40)
        index, position = _integer(block, position, 6 if is_kept else 4)
        known = self._at(index)
        if index:
            name = known[0] if known else b""
        else:
            name, position = _string(block, position)
        value, position = _string(block, position)
        if is_kept:
            self._table.insert(0, (name, value))
            del self._table[_KEPT:]
            self._changed = True
        return (name, value), position

    def _at(self, index: int) -> tuple[bytes, bytes] | None:
        number = index - _STATIC_ENTRIES - 1
        return self._table[number] if 0 <= number < len(self._table) else None


def _integer(block: bytes, position: int, bits: int) -> tuple[int, int]:
    most = (1 << bits) - 1
    value = block[position] & most
    position += 1
    if value < most:
        return value, position
    shift = 0
    while True:
        byte = block[position]
        position += 1
        value += (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return value, position


def _string(block: bytes, position: int) -> tuple[bytes, int]:
    is_packed = bytes([block[position] >> 7])
    length, position = _integer(block, position, 7)
    return is_packed + block[position : position + length], position + length
