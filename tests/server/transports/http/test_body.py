"""Compressed bodies are decompressed piece by piece: what a few bytes expand to is never there at once."""

import asyncio
import gzip
import tracemalloc
import zlib

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message

from cnnserve.errors import InvalidInput, QueueFull
from cnnserve.process.admission import MemoryBudget
from cnnserve.transports.http.body import BodyReader

MIB = 2**20
# What the reader may have decompressed and not yet handed on.
PIECE = MIB // 4


def request(*parts: bytes, coding: str = "") -> Request:
    """A request whose body arrives in these parts."""
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    messages.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> Message:
        return messages.pop(0)

    headers = [(b"content-encoding", coding.encode())] if coding else []
    return Request({"type": "http", "method": "POST", "headers": headers}, receive)


def reader(*parts: bytes, coding: str = "", budget: MemoryBudget | None = None, max_mib: int = 64) -> BodyReader:
    return BodyReader(request(*parts, coding=coding), budget or MemoryBudget(1024 * MIB), max_mib * MIB)


def deflated(size: int) -> bytes:
    """`size` zeros in about a thousandth as many bytes."""
    return zlib.compress(bytes(size), 9)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_no_piece_is_larger_than_a_quarter_of_a_mebibyte(coding: str) -> None:
    data = gzip.compress(bytes(8 * MIB)) if coding == "gzip" else deflated(8 * MIB)
    sizes = [len(piece) async for piece in reader(data, coding=coding).pieces()]
    assert sum(sizes) == 8 * MIB
    assert max(sizes) <= PIECE


async def test_a_body_that_expands_without_end_is_refused_before_it_is_there() -> None:
    """64 KiB that are 64 MiB: a server that decompressed them in one call would hold all of it."""
    bomb = deflated(64 * MIB)
    assert len(bomb) < 128 * 1024
    tracemalloc.start()
    try:
        with pytest.raises(HTTPException) as caught:
            await reader(bomb, coding="deflate", max_mib=1).whole()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert caught.value.status_code == 413
    assert peak < 4 * MIB


async def test_the_budget_is_asked_before_the_rest_is_decompressed() -> None:
    budget = MemoryBudget(2 * MIB)
    body = reader(deflated(64 * MIB), coding="deflate", budget=budget)
    tracemalloc.start()
    try:
        with pytest.raises(QueueFull), body.room():
            await body.whole()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert budget.held_bytes == 0
    assert peak < 6 * MIB


@pytest.mark.parametrize("part", [1, 7, 10**6])
async def test_gzip_data_may_have_several_members(part: int) -> None:
    """As bgzip and `cat a.gz b.gz` write them."""
    members = [bytes(PIECE + 1), b"", b"end"]
    data = b"".join(map(gzip.compress, members))
    parts = [data[start : start + part] for start in range(0, len(data), part)]
    assert await reader(*parts, coding="gzip").whole() == b"".join(members)
    with pytest.raises(InvalidInput, match="ends too early"):
        await reader(data[:-1], coding="gzip").whole()


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_what_follows_compressed_data_is_not_dropped_in_silence(coding: str) -> None:
    data = gzip.compress(b"all") if coding == "gzip" else zlib.compress(b"all")
    with pytest.raises(InvalidInput, match=f"not valid {coding}"):
        await reader(data + b"more", coding=coding).whole()


async def test_others_have_their_turn_while_a_body_is_decompressed() -> None:
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    async for _ in reader(deflated(8 * MIB), coding="deflate").pieces():
        pass
    task.cancel()
    assert turns >= 8 * MIB // PIECE


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE])
@pytest.mark.parametrize("part", [1, 7, 1000, 10**6])
async def test_however_it_arrives_it_is_the_same(size: int, part: int) -> None:
    content = bytes(range(256)) * (size // 256 + 1)
    data = gzip.compress(content[:size])
    parts = [data[start : start + part] for start in range(0, len(data), part)]
    assert await reader(*parts, coding="gzip").whole() == content[:size]


@pytest.mark.parametrize("cut", [1, 8, 20])
async def test_a_body_that_ends_too_early_is_told(cut: int) -> None:
    with pytest.raises(InvalidInput, match="gzip"):
        await reader(gzip.compress(b"some text")[:-cut], coding="gzip").whole()


async def test_a_body_of_another_coding_is_told() -> None:
    with pytest.raises(InvalidInput, match="gzip"):
        await reader(b"some text", coding="gzip").whole()
    with pytest.raises(HTTPException) as caught:
        await reader(b"some text", coding="br").whole()
    assert caught.value.status_code == 415


async def test_what_is_read_is_held_until_the_room_ends() -> None:
    budget = MemoryBudget(4 * MIB)
    body = reader(bytes(MIB), b"", bytes(MIB), budget=budget)
    with body.room():
        assert len(await body.whole()) == 2 * MIB
        assert budget.held_bytes == 2 * MIB
    assert budget.held_bytes == 0
