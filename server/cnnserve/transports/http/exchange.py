"""One HTTP request, and its way to the handlers of the method table."""

import asyncio
import contextlib
import re
import time
from collections.abc import Coroutine, Iterator, Mapping
from typing import Any, TypeVar

from google.protobuf.message import Message
from starlette.requests import ClientDisconnect, Request

from cnnserve.access.accounts import Account
from cnnserve.access.guard import Caller
from cnnserve.api.methods import HEADERS, CallContext, Method
from cnnserve.errors import DeadlineExceeded, InvalidInput
from cnnserve.transports.http.body import MAX_JSON_BYTES, BodyReader, read_object
from cnnserve.transports.http.connection import NAMES
from cnnserve.transports.http.in_flight import Limits

_T = TypeVar("_T")

TIMEOUT = "Grpc-Timeout"
# gRPC's format of a timeout: at most eight digits and a unit.
_TIMEOUT = re.compile(r"(\d{1,8})([HMSmun])", re.ASCII)
_UNIT_NS = {"H": 3600 * 10**9, "M": 60 * 10**9, "S": 10**9, "m": 10**6, "u": 10**3, "n": 1}


def client_of(request: Request) -> str:
    """Returns the client's connection, as `CallContext` names it."""
    client = request.client
    if client is None:
        return ""
    # As gRPC writes it, so that both protocols count as one address.
    host = f"ipv6:%5B{client.host}%5D" if ":" in client.host else f"ipv4:{client.host}"
    return f"{host}:{client.port}"


def caller_of(request: Request) -> Caller:
    """Returns what is known of the client."""
    headers = request.headers
    forwarded = ",".join(headers.getlist("x-forwarded-for"))
    names = request.scope["extensions"][NAMES]
    return Caller(client_of(request), tuple(headers.getlist("authorization")), names, forwarded)


class Exchange:
    """One request, its body, and the RPCs that respond to it.

    `rpc`: the RPC of its route, "" if the route has none. `account`: of the client, as in `CallContext`.
    """

    def __init__(
        self,
        request: Request,
        rpc: str,
        methods: Mapping[str, Method],
        limits: Limits,
        account: Account | None = None,
    ) -> None:
        self.request = request
        self._account = account
        self._rpc = rpc
        self._methods = methods
        self.limits = limits
        self._deadline_ns = _deadline_ns(request.headers.get(TIMEOUT))

    @property
    def method(self) -> Method:
        """The row of the method table for the route's RPC."""
        return self._methods[self._rpc]

    @property
    def path(self) -> dict[str, str]:
        """The path's parameters by the message fields that they fill; without those of segments that are absent."""
        return dict(self.request.path_params)

    @contextlib.contextmanager
    def body(self) -> Iterator[BodyReader]:
        """Yields a reader of the request's body. The memory that the body holds is released at the end."""
        reader = BodyReader(self.request, self.limits.budget, self.limits.max_body_bytes)
        with reader.room():
            yield reader

    async def object(self) -> dict[str, Any]:
        """Returns the body as a JSON object, {} if it is empty. Raises as `BodyReader.pieces` and `read_object`."""
        with self.body() as body:
            data = await body.whole(MAX_JSON_BYTES)
            return await self.limits.aside.run(len(data), read_object, data)

    async def ask(self, message: Message | None = None, rpc: str | None = None) -> Any:
        """Returns the response of the route's RPC, or of `rpc`, to a message; None: one with the path's parameters.

        Raises `ClientDisconnect` if the client disconnects, `DeadlineExceeded` if the request's timeout ends, and the
        errors of the handler.
        """
        method = self.method if rpc is None else self._methods[rpc]
        handler: Any = method.handler
        request = method.request(**self.path) if message is None else message
        return await self.wait(handler(request, self.context()))

    async def wait(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Returns what `work` returns, and cancels it if the client disconnects or the request's timeout ends.

        Raises as `ask`.
        """
        answer = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(self._disconnect())
        delay_s = None if self._deadline_ns is None else max(0.0, (self._deadline_ns - time.monotonic_ns()) / 1e9)
        try:
            await asyncio.wait({answer, gone}, timeout=delay_s, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            if gone.done():
                raise ClientDisconnect
            raise DeadlineExceeded(f"the time in {TIMEOUT} ended before the response was complete; allow more time")
        finally:
            answer.cancel()
            gone.cancel()
            # The traceback of an error refers to this frame: with the task, it would be a cycle that keeps the request.
            del answer

    def context(self) -> CallContext:
        """Returns what handlers may know of the request."""
        headers: dict[str, Any] = {field: self.request.headers.get(name, "") for name, field in HEADERS.items()}
        return CallContext(self._deadline_ns, client_of(self.request), account=self._account, **headers)

    async def _disconnect(self) -> None:
        while (await self.request.receive())["type"] != "http.disconnect":
            pass


def _deadline_ns(text: str | None) -> int | None:
    if text is None:
        return None
    match = _TIMEOUT.fullmatch(text.strip())
    if match is None:
        raise InvalidInput(
            f"{TIMEOUT} is {text[:100]!r}, expected at most 8 digits and one of the units H, M, S, m, u and n, such as "
            "250m for 250 ms"
        )
    return time.monotonic_ns() + int(match[1]) * _UNIT_NS[match[2]]
