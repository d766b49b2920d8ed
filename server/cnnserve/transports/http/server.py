"""The HTTP port: an application of the route table's operations, and the server that runs it."""

import contextlib
import socket
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from cnnserve.api.methods import Method
from cnnserve.api.status import STATUS
from cnnserve.registry.snapshot import Snapshot
from cnnserve.transports.http import openapi
from cnnserve.transports.http.answers import answer, error_answer
from cnnserve.transports.http.exchange import Exchange
from cnnserve.transports.http.in_flight import InFlight, Limits
from cnnserve.transports.http.routes import Operation, operations, scraping
from cnnserve.transports.http.scraping import Scraping

# A client that never reads its answers must not hold the process up at its end.
_MAX_CONNECTIONS = 1000
_SHUTDOWN_S = 1
# Longer than the pools of clients and load balancers keep a connection, so that they close first and no request
# meets a connection that is about to go.
_KEEP_ALIVE_S = 75


def application(
    methods: Iterable[Method], limits: Limits, in_flight: InFlight, snapshot: Callable[[], Snapshot]
) -> Starlette:
    """The routes whose RPC is in the method table, and the one of the metrics, which are `snapshot`'s."""
    table = {method.name: method for method in methods}
    served = [operation for operation in operations() if operation.rpc in table]
    served.append(scraping(Scraping(snapshot).scrape))
    by_path: defaultdict[str, dict[str, Operation]] = defaultdict(dict)
    for operation in served:
        by_path[operation.path][operation.method] = operation
    document = openapi.document(served, limits.max_body_bytes)

    async def description(_: Request) -> Response:
        return answer(document)

    app = Starlette(
        routes=[
            Route("/openapi.json", description),
            *(
                Route(path, _Endpoint(by_method, table, limits, in_flight), methods=[*by_method, "OPTIONS"])
                for path, by_method in by_path.items()
            ),
        ],
        exception_handlers={HTTPException: _refusal},
    )
    app.router.redirect_slashes = False
    return app


class HttpServer:
    """uvicorn on the running loop, on a socket that is bound before it starts."""

    def __init__(self, app: Starlette, listening: socket.socket) -> None:
        self._socket = listening
        self._server = _Uvicorn(
            uvicorn.Config(
                app,
                log_config=None,
                # What clients send wrong is their news, not the log's.
                log_level="error",
                access_log=False,
                server_header=False,
                lifespan="off",
                limit_concurrency=_MAX_CONNECTIONS,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=_SHUTDOWN_S,
            )
        )

    async def serve(self) -> None:
        """Answers until `stop`."""
        await self._server.serve(sockets=[self._socket])

    def stop(self) -> None:
        """Ends `serve` after the requests in flight."""
        self._server.should_exit = True


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # Signals belong to the whole server; `app` handles them.
        yield


class _Endpoint:
    """The operations of one path. Every error of theirs leaves through here."""

    def __init__(
        self, by_method: Mapping[str, Operation], table: Mapping[str, Method], limits: Limits, in_flight: InFlight
    ) -> None:
        self._by_method = by_method
        self._table = table
        self._limits = limits
        self._in_flight = in_flight
        # Starlette answers HEAD where GET is answered.
        self._allow = ", ".join([*by_method, *(["HEAD"] if "GET" in by_method else []), "OPTIONS"])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        if request.method == "OPTIONS":
            await Response(status_code=204, headers={"Allow": self._allow})(scope, receive, send)
            return
        operation = self._by_method["GET" if request.method == "HEAD" else request.method]
        method = self._table[operation.rpc] if operation.rpc else None
        with contextlib.ExitStack() as inside:
            try:
                if method is not None and not method.while_draining:
                    inside.enter_context(self._in_flight.enter())
                response = await operation.handle(Exchange(request, operation.rpc, self._table, self._limits))
            except ClientDisconnect:
                return
            except Exception as error:
                statuses = STATUS if method is None else method.statuses
                response = error_answer(error, f"{request.method} {request.url.path}", statuses)
            if self._in_flight.draining:
                response.headers["Connection"] = "close"
            await response(scope, receive, send)


async def _refusal(request: Request, error: Exception) -> Response:
    """For a path or a method that no route takes."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        error.detail = f"{request.method} is not answered here, {allowed} are"
    else:
        error.detail = f"there is no {request.url.path[:100]!r} here; /openapi.json names what there is"
    return error_answer(error, "")
