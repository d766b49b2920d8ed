"""Statuses in header blocks, as servers encode them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnserve.tools.load.hpack import NO_STATUS, STATUSES, StatusReader

# From RFC 7541, Appendix B.
PACKED_NAME = bytes.fromhex("889acac8b21234da8f")
NEW, NOT_KEPT = b"\x40", b"\x00"


def text(value: str) -> bytes:
    return bytes([len(value)]) + value.encode()


@pytest.mark.parametrize("name", [text("grpc-status"), PACKED_NAME])
@pytest.mark.parametrize("kind", [NEW, NOT_KEPT, b"\x10"])
def test_a_status_as_text(name: bytes, kind: bytes) -> None:
    assert StatusReader().read(kind + name + text("8")) == "RESOURCE_EXHAUSTED"


@pytest.mark.parametrize(("packed", "status"), [("8107", "OK"), ("817b", "RESOURCE_EXHAUSTED")])
def test_a_status_in_huffman_code(packed: str, status: str) -> None:
    assert StatusReader().read(NOT_KEPT + PACKED_NAME + bytes.fromhex(packed)) == status


def test_a_response_without_status() -> None:
    assert StatusReader().read(b"\x88") == NO_STATUS


@given(st.lists(st.one_of(st.integers(0, 16), st.text("abc", min_size=1, max_size=9)), min_size=1, max_size=60))
def test_references_mean_what_they_meant_when_they_were_made(entries: list[int | str]) -> None:
    """A server teaches statuses and other headers, and refers to the ones that it taught."""
    reader = StatusReader()
    taught: list[str] = []
    for entry in entries:
        if isinstance(entry, int):
            assert reader.read(NEW + text("grpc-status") + text(str(entry))) == STATUSES[entry]
            taught.insert(0, STATUSES[entry])
        else:
            assert reader.read(NEW + text(entry) + text(entry)) == NO_STATUS
            taught.insert(0, NO_STATUS)
        for place, status in enumerate(taught[:60]):
            for _ in range(2):
                assert reader.read(bytes([0x80 | 62 + place])) == status
