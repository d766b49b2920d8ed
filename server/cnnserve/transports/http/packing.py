"""Answers packed with what `Accept-Encoding` takes."""

import asyncio
import gzip
import re
import zlib
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response

# Below it, packing saves no packet.
_PACK_FROM_BYTES = 1400
_PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, 1, mtime=0),
    "deflate": lambda data: zlib.compress(data, 1),
}


async def packed(request: Request, response: Response) -> Response:
    """The response, its body packed on a thread where it is large enough and the client takes a coding of ours."""
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
    """What an `Accept` or `Accept-Encoding` names and does not refuse, in its order, without parameters."""
    named = [[word.strip().lower() for word in part.split(";")] for part in header.split(",")]
    return [kind for kind, *weight in named if not any(re.fullmatch(r"q=0(\.0*)?", word) for word in weight)]


def _coding(header: str) -> str | None:
    """The first one of ours that `Accept-Encoding` takes."""
    taken = accepted(header)
    return next((coding for coding in _PACKERS if coding in taken), None)
