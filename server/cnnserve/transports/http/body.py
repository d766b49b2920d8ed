"""A request's body: bounded, decompressed, paid for from the memory budget while it arrives."""

import asyncio
import contextlib
import zlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from cnnserve import json_text
from cnnserve.errors import InvalidInput
from cnnserve.process.admission import MemoryBudget

# Nothing came for this long: the client has gone, or means harm.
_STALL_S = 30.0
# JSON is read on the event loop: this much takes 0.1 to 0.2 s there, binary data nothing.
MAX_JSON_BYTES = 4 * 2**20
_MAX_LISTS = 500_000
# gzip or zlib, by their first bytes.
_ANY_WINDOW = zlib.MAX_WBITS | 32
_PIECE = 2**18
# A body this many times too large is read and dropped, so that its client gets to see the answer; more is cut off.
_DROPPED = 4


class BodyReader:
    """Reads one request's body while `room` holds its bytes."""

    def __init__(self, request: Request, budget: MemoryBudget, max_bytes: int) -> None:
        self._request = request
        self._budget = budget
        self._max_bytes = max_bytes
        self._room = contextlib.ExitStack()

    @contextlib.contextmanager
    def room(self) -> Iterator[None]:
        """Gives back at its end what the bytes read so far held."""
        with self._room:
            yield

    async def whole(self, max_bytes: int | None = None) -> bytes:
        """All of it. Raises as `pieces`."""
        return b"".join([piece async for piece in self.pieces(max_bytes)])

    async def pieces(self, max_bytes: int | None = None) -> AsyncIterator[bytes]:
        """As it arrives, decompressed.

        Raises `HTTPException` for one that is too large (413, before it is read where its length is declared), stalls
        (408) or has a coding other than gzip and deflate (415), `QueueFull` where the memory is not there, and
        `InvalidInput` for data that is not what its coding says.
        """
        limit = self._max_bytes if max_bytes is None else min(max_bytes, self._max_bytes)
        declared = int(self._request.headers.get("content-length", "0"))
        if declared > limit:
            raise _too_large(declared, limit)
        total = 0
        async for piece in self._decoded():
            total += len(piece)
            if total > limit:
                raise _too_large(None, limit)
            self._room.enter_context(self._budget.hold(len(piece)))
            yield piece

    async def _decoded(self) -> AsyncIterator[bytes]:
        coding = self._request.headers.get("content-encoding", "identity").strip().lower()
        if coding in ("", "identity"):
            async for piece in self._arriving():
                yield piece
            return
        if coding not in ("gzip", "deflate"):
            raise HTTPException(415, f"content-encoding {coding[:100]!r} is not read here; send gzip, deflate or none")
        decoder = zlib.decompressobj(_ANY_WINDOW)
        try:
            async for piece in self._arriving():
                data, full = piece, False
                while (data or full) and not decoder.eof:
                    output = decoder.decompress(data, _PIECE)
                    yield output
                    data, full = decoder.unconsumed_tail, len(output) == _PIECE
                    # A small piece may become thousands of large ones.
                    await asyncio.sleep(0)
        except zlib.error as error:
            raise InvalidInput(f"the body is not in {coding} as its content-encoding says: {error}") from error
        if not decoder.eof:
            raise InvalidInput(f"the body's {coding} data ends too early")

    async def _arriving(self) -> AsyncIterator[bytes]:
        more = True
        while more:
            try:
                async with asyncio.timeout(_STALL_S):
                    message = await self._request.receive()
            except TimeoutError as error:
                close = {"Connection": "close"}
                raise HTTPException(408, f"nothing of the body came for {_STALL_S:g} s", close) from error
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            if message.get("body"):
                yield message["body"]
            more = message.get("more_body", False)


def read_object(data: bytes) -> dict[str, Any]:
    """A JSON object; an empty body is an empty one. Raises `InvalidInput`."""
    if len(data) > MAX_JSON_BYTES or data.count(b"[") + data.count(b"{") > _MAX_LISTS:
        raise InvalidInput(
            f"the JSON has {len(data)} bytes; at most {MAX_JSON_BYTES} and {_MAX_LISTS} lists are read, "
            "send tensors as binary data (binary_data_size)"
        )
    if not data:
        return {}
    try:
        value = json_text.loads(data, _refuse)
    except ValueError as error:
        raise InvalidInput(f"the body is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidInput(f"the body is a JSON {type(value).__name__}, expected an object")
    return value


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no JSON; send it as binary data")


def _too_large(declared: int | None, limit: int) -> HTTPException:
    size = "more" if declared is None else f"{declared} bytes"
    headers = {"Connection": "close"} if declared is None or declared > _DROPPED * limit else None
    return HTTPException(413, f"the body has {size}, at most {limit} bytes are read here (max_message_mib)", headers)
