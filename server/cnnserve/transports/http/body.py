"""Reads the body of a request: bounds its size, decompresses it and takes its bytes from the memory budget."""

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

# If no data arrives for this time, the client has disconnected or is malicious.
_STALL_S = 30.0
# JSON takes many times its bytes when it is parsed; at these limits up to 60 MB and 0.3 s of a thread.
MAX_JSON_BYTES = 4 * 2**20
_MAX_CONTAINERS = 500_000
_SHORT_BYTES = 2**16
_LARGER = "start the server with a larger --max-message-mib"
_SEND_BINARY = "send tensors as binary data (binary_data_size)"
# zlib tells gzip and zlib data apart by their first bytes.
_ANY_WINDOW = zlib.MAX_WBITS | 32
_PIECE = 2**18
# A body of at most this many times the limit is read and dropped, so that its client receives the response. If a body
# is larger, or its length is not declared, the server closes the connection.
_DROPPED = 4


class BodyReader:
    """Reads the body of one request. The bytes that it has read stay in the memory budget until `room` ends."""

    def __init__(self, request: Request, budget: MemoryBudget, max_bytes: int) -> None:
        self._request = request
        self._budget = budget
        self._max_bytes = max_bytes
        self._room = contextlib.ExitStack()

    @contextlib.contextmanager
    def room(self) -> Iterator[None]:
        """Returns the memory of the bytes that were read to the budget, at its end."""
        with self._room:
            yield

    async def whole(self, max_bytes: int | None = None, fix: str = "") -> bytes:
        """Returns the whole body, decompressed. Arguments and errors are those of `pieces`."""
        return b"".join([piece async for piece in self.pieces(max_bytes, fix)])

    async def pieces(self, max_bytes: int | None = None, fix: str = "") -> AsyncIterator[bytes]:
        """Yields the body in pieces as they arrive, decompressed. `max_bytes`: a limit below that of the server.
        `fix`: what clients of larger bodies should do.

        Raises `HTTPException` if the body is too large (413; before it is read if its length is declared), if it
        stalls (408), and if its content-encoding is neither gzip nor deflate (415). Raises `QueueFull` if the memory
        budget is used up, `InvalidInput` if the data does not match its content-encoding, and `ClientDisconnect`.
        """
        limit = self._max_bytes if max_bytes is None else min(max_bytes, self._max_bytes)
        fix = _SEND_BINARY if limit < self._max_bytes else fix or _LARGER
        declared = int(self._request.headers.get("content-length", "0"))
        if declared > limit:
            raise _too_large(declared, limit, fix)
        total = 0
        async for piece in self._decoded():
            total += len(piece)
            if total > limit:
                raise _too_large(None, limit, fix)
            self._room.enter_context(self._budget.hold(len(piece)))
            yield piece

    async def _decoded(self) -> AsyncIterator[bytes]:
        coding = self._request.headers.get("content-encoding", "identity").strip().lower()
        if coding in ("", "identity"):
            async for piece in self._arriving():
                yield piece
            return
        if coding not in ("gzip", "deflate"):
            raise HTTPException(415, f"content-encoding {coding[:100]!r} is not supported; send gzip, deflate or none")
        decoder = zlib.decompressobj(_ANY_WINDOW)
        try:
            async for piece in self._arriving():
                data = piece
                while data:
                    if decoder.eof:
                        # gzip data may have several members, one after the other.
                        decoder = zlib.decompressobj(_ANY_WINDOW)
                    yield decoder.decompress(data, _PIECE)
                    data = decoder.unused_data if decoder.eof else decoder.unconsumed_tail
                    # A small compressed piece may decompress to thousands of large ones; others get their turn.
                    await asyncio.sleep(0)
        except zlib.error as error:
            raise InvalidInput(f"the body is not valid {coding}, which its content-encoding names: {error}") from error
        if not decoder.eof:
            raise InvalidInput(f"the {coding} data of the body ends too early; send all of it")

    async def _arriving(self) -> AsyncIterator[bytes]:
        more = True
        while more:
            try:
                async with asyncio.timeout(_STALL_S):
                    message = await self._request.receive()
            except TimeoutError as error:
                close = {"Connection": "close"}
                raise HTTPException(408, f"no data of the body came for {_STALL_S:g} s; retry", close) from error
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            if message.get("body"):
                yield message["body"]
            more = message.get("more_body", False)


def read_object(data: bytes, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Returns the JSON object in `data`, {} if `data` is empty. Raises `InvalidInput`."""
    if len(data) > max_bytes:
        raise InvalidInput(f"the JSON body has {len(data)} bytes, the limit is {max_bytes} bytes; {_SEND_BINARY}")
    if (containers := data.count(b"[") + data.count(b"{")) > _MAX_CONTAINERS:
        raise InvalidInput(
            f"the JSON body has {containers} arrays and objects ('[' and '{{'), the limit is {_MAX_CONTAINERS}; "
            f"{_SEND_BINARY}"
        )
    if not data:
        return {}
    try:
        value = json_text.loads(data, _refuse, in_steps=len(data) > _SHORT_BYTES)
    except ValueError as error:
        raise InvalidInput(f"the body is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidInput(f"the body is JSON of type {type(value).__name__}, expected an object")
    return value


def _refuse(word: str) -> None:
    raise ValueError(f"JSON has no {word}; send it as binary data")


def _too_large(declared: int | None, limit: int, fix: str) -> HTTPException:
    size = f"more than {limit}" if declared is None else f"{declared}"
    headers = {"Connection": "close"} if declared is None or declared > _DROPPED * limit else None
    return HTTPException(413, f"the body has {size} bytes, the limit is {limit} bytes; {fix}", headers)
