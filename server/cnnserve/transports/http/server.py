"""The HTTP port: an application with the routes of the route table, and the server that runs it."""

import asyncio
import contextlib
import socket
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import cast

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from cnnserve.access.guard import Guard
from cnnserve.access.scopes import Scope as Needed
from cnnserve.access.tls import Tls
from cnnserve.api.methods import Method
from cnnserve.api.page import PageService
from cnnserve.api.status import STATUS
from cnnserve.process.admission import MemoryBudget
from cnnserve.registry.snapshot import Snapshot
from cnnserve.transports.http import openapi
from cnnserve.transports.http.answers import answer, error_answer
from cnnserve.transports.http.connection import SENT, Connection
from cnnserve.transports.http.connections import ConnectionLimits, Connections
from cnnserve.transports.http.exchange import Exchange, caller_of
from cnnserve.transports.http.hosts import HostCheck
from cnnserve.transports.http.in_flight import InFlight, Limits
from cnnserve.transports.http.infer_json import HEADER_LENGTH
from cnnserve.transports.http.page.live import Live
from cnnserve.transports.http.page.routes import page_operations
from cnnserve.transports.http.routes import Operation, description, operations, scraping
from cnnserve.transports.http.scraping import Scraping
from cnnserve.transports.http.settings import HttpSettings

# The event loop keeps so much for a client before it says that the client does not read.
_SMALL_BYTES = 2**16
# Limited, because a client that never reads its responses must not keep the process from exiting. uvicorn's own limit
# is later: it would log an error for each of these clients.
_SHUTDOWN_S = 0.5
_UVICORN_S = 2
_HANDSHAKE_S = 10.0


def application(
    methods: Iterable[Method],
    limits: Limits,
    in_flight: InFlight,
    snapshot: Callable[[], Snapshot],
    settings: HttpSettings = HttpSettings(),  # noqa: B008 - it is frozen
    *,
    page: PageService | None = None,
    guard: Guard | None = None,
) -> Starlette:
    """Returns the application: the routes whose RPC is in the method table, the metrics of `snapshot`, and the page."""
    rows = [*methods]
    metrics = scraping(Scraping(snapshot).scrape)
    document = openapi.document([*_served(rows), metrics], limits.max_body_bytes)

    async def describe(_: Exchange) -> Response:
        return answer(document)

    own = [description(describe), metrics]
    if page is not None and settings.page:
        own += page_operations(page, Live(snapshot, in_flight.ending))
    return routed(rows, limits, in_flight, settings, own=own, guard=guard)


def routed(
    methods: Iterable[Method],
    limits: Limits,
    in_flight: InFlight,
    settings: HttpSettings = HttpSettings(),  # noqa: B008 - it is frozen
    *,
    own: Sequence[Operation] = (),
    guard: Guard | None = None,
) -> Starlette:
    """Returns an application with the routes whose RPC is among the methods, and with routes of its `own`."""
    hosts = None if settings.allowed_hosts is None else HostCheck(settings.allowed_hosts)
    table = {method.name: method for method in methods}
    by_path: defaultdict[str, dict[str, Operation]] = defaultdict(dict)
    for operation in (*_served(table.values()), *own):
        by_path[operation.path][operation.method] = operation
    app = Starlette(
        routes=[
            Route(
                path,
                _Endpoint(by_method, table, limits, in_flight, hosts=hosts, guard=guard),
                methods=[*by_method, "OPTIONS"],
            )
            for path, by_method in by_path.items()
        ],
        exception_handlers={HTTPException: _refusal},
        middleware=_cors(settings.cors_origins),
    )
    app.router.redirect_slashes = False
    return app


def _served(methods: Iterable[Method]) -> list[Operation]:
    names = {method.name for method in methods}
    return [operation for operation in operations() if operation.rpc in names]


def _cors(origins: Sequence[str]) -> list[Middleware]:
    if not origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=[HEADER_LENGTH, "Retry-After"],
        )
    ]


class HttpServer:
    """Runs an application with uvicorn on the running event loop, on a socket that is bound already."""

    def __init__(
        self,
        app: Starlette,
        listening: socket.socket,
        budget: MemoryBudget,
        limits: ConnectionLimits = ConnectionLimits(),  # noqa: B008 - it is frozen
        tls: Tls | None = None,
    ) -> None:
        self._socket = listening
        self._connections = Connections(limits, budget)
        protocol = partial(Connection, self._connections)
        self._server = _Uvicorn(
            tls,
            uvicorn.Config(
                app,
                # uvicorn calls it, and needs no class for that.
                http=cast("type[asyncio.Protocol]", protocol),
                ws="none",
                proxy_headers=False,
                log_config=None,
                # At lower levels, uvicorn logs invalid requests; these concern their clients, not the operator.
                log_level="error",
                access_log=False,
                server_header=False,
                lifespan="off",
                timeout_keep_alive=int(limits.idle_s),
                timeout_graceful_shutdown=_UVICORN_S,
            ),
        )

    async def serve(self) -> None:
        """Serves requests until `stop` is called and the requests in flight have ended."""
        await self._server.serve(sockets=[self._socket])

    def stop(self) -> None:
        """Ends `serve` after the requests in flight, and after `_SHUTDOWN_S` seconds at the latest."""
        self._server.should_exit = True
        asyncio.get_running_loop().call_later(_SHUTDOWN_S, self._connections.drop_all)


class _Uvicorn(uvicorn.Server):
    def __init__(self, tls: Tls | None, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._tls = tls

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self._tls is None:
            await super().startup(sockets)
            return
        # uvicorn gives clients 60 s for the handshake, and takes files, which it reads only once.
        make = partial(
            cast("Callable[..., asyncio.Protocol]", self.config.http_protocol_class),
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        loop, context = asyncio.get_running_loop(), self._tls.http_context()
        self.servers = [
            await loop.create_server(
                make, sock=one, ssl=context, ssl_handshake_timeout=_HANDSHAKE_S, backlog=self.config.backlog
            )
            for one in sockets or ()
        ]
        self.started = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # `app` handles the signals of the whole process.
        yield


class _Endpoint:
    """The operations of one path. It turns every error that they raise into a response."""

    def __init__(
        self,
        by_method: Mapping[str, Operation],
        table: Mapping[str, Method],
        limits: Limits,
        in_flight: InFlight,
        *,
        hosts: HostCheck | None,
        guard: Guard | None,
    ) -> None:
        self._by_method = by_method
        self._table = table
        self._limits = limits
        self._in_flight = in_flight
        self._hosts = hosts
        self._guard = guard
        self._scopes = {name: _scope(operation, table) for name, operation in by_method.items()}
        # Starlette accepts HEAD on every path that has GET.
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
                if self._hosts is not None:
                    self._hosts.check(request.headers, changes=operation.changes)
                account = None
                if self._guard is not None:
                    needed = self._scopes[operation.method]
                    account = self._guard.admit(f"{request.method} {operation.path}", needed, caller_of(request))
                if method is not None and not method.while_draining:
                    inside.enter_context(self._in_flight.enter())
                response = await operation.handle(Exchange(request, operation.rpc, self._table, self._limits, account))
                # A stream has no body.
                size = len(getattr(response, "body", b""))
                if size > _SMALL_BYTES:
                    inside.enter_context(self._limits.budget.hold(size))
            except ClientDisconnect:
                return
            except Exception as error:
                statuses = STATUS if method is None else method.statuses
                response = error_answer(error, f"{request.method} {request.url.path}", statuses)
            if self._in_flight.draining:
                response.headers["Connection"] = "close"
            await response(scope, receive, send)
            # A large response counts in the memory budget until its client has taken it.
            await scope["extensions"][SENT]()


def _scope(operation: Operation, table: Mapping[str, Method]) -> Needed:
    """Returns what a client needs to call an operation: what its RPC says, or its own scope."""
    if operation.rpc:
        return table[operation.rpc].scope
    if operation.scope is None:
        raise ValueError(f"route {operation.path} states no scope")
    return operation.scope


async def _refusal(request: Request, error: Exception) -> Response:
    """Returns the response to a request for a path or an HTTP method that no route has."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        error.detail = f"method {request.method} is not supported on this path; use one of {allowed}"
    else:
        error.detail = f"path {request.url.path[:100]!r} does not exist; /openapi.json lists all paths"
    return error_answer(error, "")
