"""`GET /metrics`: when it is measured, on which thread it is written, in which format it leaves."""

import asyncio
import importlib
from collections.abc import Callable

from starlette.responses import Response

from cnnserve.registry.snapshot import Snapshot
from cnnserve.transports.http.exchange import Exchange
from cnnserve.transports.http.packing import accepted, packed

PLAIN = "text/plain"
OPEN_METRICS = "application/openmetrics-text"
_CONTENT_TYPES = {
    PLAIN: f"{PLAIN}; version=0.0.4; charset=utf-8",
    OPEN_METRICS: f"{OPEN_METRICS}; version=1.0.0; charset=utf-8",
}


class Scraping:
    """Answers scrapes with what `snapshot`, called on the event loop, gives."""

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._snapshot = snapshot
        # One at a time, so that scrapes take one thread and not a core each.
        self._writing = asyncio.Lock()

    async def scrape(self, exchange: Exchange) -> Response:
        """All metrics. Written on a thread: the text of many models takes longer than the event loop may be held."""
        kind = _kind(exchange.request.headers.get("accept", ""))
        async with self._writing:
            text = await asyncio.to_thread(_write, self._snapshot(), kind)
        headers = {"Content-Type": _CONTENT_TYPES[kind], "Vary": "Accept"}
        return await packed(exchange.request, Response(text, headers=headers))


def _write(snapshot: Snapshot, kind: str) -> bytes:
    # Imported by the first scrape: beside models that load, the library makes a start a twentieth longer.
    exposition = importlib.import_module("cnnserve.transports.http.exposition")
    text: bytes = exposition.write(snapshot, open_metrics=kind == OPEN_METRICS)
    return text


def _kind(accept: str) -> str:
    """The first of our two media types that `Accept` takes; Prometheus names them in its order of preference."""
    return next((kind for kind in accepted(accept) if kind in _CONTENT_TYPES), PLAIN)
