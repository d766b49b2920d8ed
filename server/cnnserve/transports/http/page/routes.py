"""The routes of the page. Those of its data need the scopes of the RPCs that give the same."""

from collections.abc import Iterator

from starlette.responses import Response

from cnnserve.access.scopes import Scope
from cnnserve.api.methods import CLASSIFIER
from cnnserve.api.page import PageService
from cnnserve.errors import InvalidInput
from cnnserve.images.header import read_header
from cnnserve.transports.http.answers import answer
from cnnserve.transports.http.exchange import Exchange
from cnnserve.transports.http.handlers import message
from cnnserve.transports.http.packing import packed
from cnnserve.transports.http.page.files import Files
from cnnserve.transports.http.page.live import Live
from cnnserve.transports.http.query import check_query
from cnnserve.transports.http.routes import Operation

API = "/page/api"
_VERSION = f"{API}/models/{{model}}/versions/{{version}}"
_CLASSIFY = f"{CLASSIFIER}/Classify"
_PRIVATE = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


def page_operations(service: PageService, live: Live) -> Iterator[Operation]:
    """Yields the routes of the page."""
    files, data = Files(), _Data(service)
    for path in ("/", "/page/{file}", "/page/samples/{file}"):
        yield Operation("GET", path, "", files.serve, "A file of the page", "Page", scope=Scope.OPEN)
    yield Operation("GET", f"{API}/models", f"{CLASSIFIER}/ListModels", message, "All models", "Object")
    for path, handle, summary in (
        (_VERSION, data.describe, "A version and its manifest"),
        (f"{_VERSION}/labels", data.labels, "The labels of a version"),
        (f"{_VERSION}/golden", data.golden, "A golden image"),
    ):
        yield Operation("GET", path, "", handle, summary, "Object", scope=Scope.READ)
    # As Classify: these take a place among the requests in flight, and a draining server refuses them.
    yield Operation("POST", f"{_VERSION}/input", _CLASSIFY, data.picture, "The pixels that the network gets", "Object")
    yield Operation("POST", f"{_VERSION}/occlusion", _CLASSIFY, data.explain, "An occlusion map", "Object")
    yield Operation("GET", f"{API}/live", "", live.stream, "Measurements, once a second", "Object", scope=Scope.METRICS)


class _Data:
    """The handlers of the page's data."""

    def __init__(self, service: PageService) -> None:
        self._service = service

    async def describe(self, exchange: Exchange) -> Response:
        """Returns a version and its manifest."""
        return answer(await self._service.describe(*_named(exchange)), headers=_PRIVATE)

    async def labels(self, exchange: Exchange) -> Response:
        """Returns a list of all labels."""
        labels = await self._service.labels(*_named(exchange))
        size = sum(map(len, labels))
        response = await exchange.limits.aside.run(size, answer, labels, headers=_PRIVATE)
        return await packed(exchange.request, response)

    async def golden(self, exchange: Exchange) -> Response:
        """Returns the file of a golden image."""
        check_query(exchange.request, ("index",))
        data = await self._service.golden_image(*_named(exchange), _number(exchange, "index") or 0)
        return _image(data, f"image/{read_header(data).format.lower()}")

    async def picture(self, exchange: Exchange) -> Response:
        """Returns a PNG of what the network gets for the image in the body."""
        check_query(exchange.request, ())
        with exchange.body() as body:
            image = await body.whole()
            work = self._service.picture(*_named(exchange), image, exchange.context())
            return _image(await exchange.wait(work), "image/png")

    async def explain(self, exchange: Exchange) -> Response:
        """Returns the occlusion map of the image in the body."""
        check_query(exchange.request, ("class", "cells"))
        index, cells = _number(exchange, "class"), _number(exchange, "cells") or 0
        with exchange.body() as body:
            image = await body.whole()
            work = self._service.explain(*_named(exchange), image, exchange.context(), index=index, cells=cells)
            return answer(await exchange.wait(work), headers=_PRIVATE)


def _named(exchange: Exchange) -> tuple[str, str]:
    return exchange.path["model"], exchange.path["version"]


def _number(exchange: Exchange, name: str) -> int | None:
    text = exchange.request.query_params.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise InvalidInput(f"{name} is {text[:100]!r}, expected a whole number from 0 to 999999999")
    return int(text)


def _image(data: bytes, kind: str) -> Response:
    return Response(data, headers=_PRIVATE | {"Content-Type": kind})
