"""Compresses the bodies of responses with a coding that `Accept-Encoding` accepts."""

import asyncio
import gzip
import re
import zlib
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response

# A smaller body fits into one network packet anyway.
_PACK_FROM_BYTES = 1400
_PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, 1, mtime=0),
    "deflate": lambda data: zlib.compress(data, 1),
}


async def packed(request: Request, response: Response) -> Response:
    """Returns the response; a thread compresses its body if it is large enough and the client accepts gzip or deflate.

    "Large enough" is 1,400 bytes or more.
    """
    if len(response.body) < _PACK_FROM_BYTES:
        return response
    response.headers.add_vary_header("Accept-Encoding")
    coding = _coding(request.headers.get("accept-encoding", ""))
    if coding is not None:
        response.body = await asyncio.to_thread(_PACKERS[coding], bytes(response.body))
        response.headers["Content-Encoding"] = coding
        response.headers["Content-Length"] = str(len(response.body))
    return response


def accepted(header: str) -> list[str]:
    """Returns what an `Accept` or `Accept-Encoding` header names and does not refuse, in order, without parameters."""
    named = [[word.strip().lower() for word in part.split(";")] for part in header.split(",")]
    return [kind for kind, *weight in named if not any(re.fullmatch(r"q=0(\.0*)?", word) for word in weight)]


def _coding(header: str) -> str | None:
    """Returns the first of the server's codings that `Accept-Encoding` accepts, None if it accepts none of them."""
    taken = accepted(header)
    return next((coding for coding in _PACKERS if coding in taken), None)
