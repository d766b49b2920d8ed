"""`GET /metrics`: takes a snapshot on the event loop and writes it on a thread, in the format the client accepts."""

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
    """Responds to scrapes with the snapshot that `snapshot` returns, which is called on the event loop."""

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._snapshot = snapshot
        # One scrape at a time, so that scrapes which arrive together use one CPU core, not one each.
        self._writing = asyncio.Lock()

    async def scrape(self, exchange: Exchange) -> Response:
        """Returns all metrics. For many models the text takes too long for the event loop, so a thread writes it."""
        kind = _kind(exchange.request.headers.get("accept", ""))
        async with self._writing:
            text = await asyncio.to_thread(_write, self._snapshot(), kind)
        headers = {"Content-Type": _CONTENT_TYPES[kind], "Vary": "Accept"}
        return await packed(exchange.request, Response(text, headers=headers))


def _write(snapshot: Snapshot, kind: str) -> bytes:
    # The first scrape imports it. At start, this import would compete with the loads and lengthen the start by 5 %.
    exposition = importlib.import_module("cnnserve.transports.http.exposition")
    text: bytes = exposition.write(snapshot, open_metrics=kind == OPEN_METRICS)
    return text


def _kind(accept: str) -> str:
    """Returns the first of the two media types that `Accept` names, otherwise `PLAIN`.

    The first one suffices, because Prometheus names media types in its order of preference.
    """
    return next((kind for kind in accepted(accept) if kind in _CONTENT_TYPES), PLAIN)
