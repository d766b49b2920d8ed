"""The files of the page, as they lie in the package. They hold no data of the server, so everybody may have them."""

import asyncio
import hashlib
from dataclasses import dataclass
from importlib import resources
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response

from cnnserve.transports.http.exchange import Exchange
from cnnserve.transports.http.packing import packed

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "json": "application/json",
    "svg": "image/svg+xml",
    "jpg": "image/jpeg",
    "png": "image/png",
}
# Nothing may come from another host, and no text becomes a script or HTML, whatever a label or an error contains.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class _File:
    data: bytes
    kind: str
    tag: str


class Files:
    """Responds with the files of the page, which it reads when the first of them is asked for."""

    def __init__(self) -> None:
        self._files: dict[str, _File] | None = None

    async def serve(self, exchange: Exchange) -> Response:
        """Returns a file, or status 304 if the client has it. Raises `HTTPException` with status 404."""
        if self._files is None:
            self._files = await asyncio.to_thread(_read)
        name = exchange.request.scope["path"].removeprefix("/page").lstrip("/") or "index.html"
        file = self._files.get(name)
        if file is None:
            raise HTTPException(404, f"file {name[:100]!r} does not exist")
        headers = _HEADERS | {"ETag": file.tag}
        if exchange.request.headers.get("if-none-match") == file.tag:
            return Response(status_code=304, headers=headers)
        response = Response(file.data, headers=headers | {"Content-Type": file.kind})
        return response if file.kind in ("image/jpeg", "image/png") else await packed(exchange.request, response)


def _read() -> dict[str, _File]:
    return _in_folder(resources.files(__package__).joinpath("web"), "")


def _in_folder(folder: Any, above: str) -> dict[str, _File]:
    files: dict[str, _File] = {}
    for item in folder.iterdir():
        name = f"{above}{item.name}"
        if item.is_dir():
            files |= _in_folder(item, f"{name}/")
        elif (kind := _TYPES.get(name.rpartition(".")[2])) is not None:
            data = item.read_bytes()
            files[name] = _File(data, kind, f'"{hashlib.sha256(data).hexdigest()[:16]}"')
    return files
