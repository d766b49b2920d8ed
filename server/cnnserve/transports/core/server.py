"""Puts the method table on grpc's core."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]

from cnnserve.access.accounts import Account
from cnnserve.access.guard import Guard
from cnnserve.access.tls import Tls
from cnnserve.api import status
from cnnserve.api.methods import Kind, Method
from cnnserve.api.status import Code, Status
from cnnserve.errors import ServingError
from cnnserve.process.admission import MemoryBudget
from cnnserve.process.pressure import MemoryPressure
from cnnserve.transports import addresses
from cnnserve.transports.calls import Gate, PeerLimits, admit, channel_arguments
from cnnserve.transports.core.call import Call, RefusedCall, StreamCall, UnaryCall
from cnnserve.transports.core.events import EventPump
from cnnserve.transports.core.receiving import CALL_BYTES, SMALL_BYTES, Receiving, memory_of
from cnnserve.transports.credentials import server_credentials
from cnnserve.transports.lull import lull
from cnnserve.transports.reflection import described

_log = logging.getLogger(__name__)

_SHUTTING_DOWN = Status(Code.UNAVAILABLE, "the server is shutting down; send the request to another one")
_TOO_MANY = Status(
    Code.RESOURCE_EXHAUSTED,
    "the server has too many calls for its memory (max_pending_mib); try again later",
    100,
)
_LEAST_CALLS = 1024
# What a client may send before the server asks for its message: 64 KiB, and no more as the connection gets faster.
# Otherwise the core holds megabytes for each call that waits.
_FLOW_CONTROL = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 2**16))
# A client that has not read its response for this time loses it if the server needs the memory.
_UNREAD_S = 1.0
# For this time after a call had work for a task, turns are short.
_SHARED_S = 0.02
_READERS = 4
# Calls that the core may hand over at once.
_ACCEPTS = 64
# What clients have after the end of the last call to read what was sent, and to leave: more if the drain left time,
# because a client on a busy machine may need seconds.
_LAST_BYTES_LEAST_S = 1.0
_LAST_BYTES_MOST_S = 5.0


class CoreTransport:
    """A gRPC server for a method table. Use on one event loop."""

    def __init__(
        self,
        methods: Iterable[Method],
        max_message_bytes: int,
        budget: MemoryBudget,
        pressure: MemoryPressure,
        peers: PeerLimits = PeerLimits(),  # noqa: B008 - it is frozen
        *,
        guard: Guard | None = None,
        reflection: bool = True,
        elsewhere: Callable[[], bool] = lambda: False,
    ) -> None:
        """`elsewhere` returns whether another transport has requests on the same loop."""
        self.loop = asyncio.get_running_loop()
        self._elsewhere = elsewhere
        self._tasks_at = 0.0
        self._budget = budget
        # Calls whose response was handed over and is not sent yet, and since when.
        self._unsent: dict[Call, float] = {}
        self.gate = Gate()
        self.max_message_bytes = max_message_bytes
        self._guard = guard
        self._draining = asyncio.Event()
        rows = described(methods, self._draining) if reflection else methods
        self._methods = {f"/{method.name}".encode(): method for method in rows}
        self._server = cygrpc.Server((*channel_arguments(max_message_bytes, peers), *_FLOW_CONTROL), False)
        self._queue = cygrpc.CompletionQueue()
        self._server.register_completion_queue(self._queue)
        self._pump = EventPump(self._queue, self._is_shared, lambda: not self._unanswered)
        self.receiving = Receiving(budget, max_message_bytes, pressure, self._relieve, self._pump.caught_up)
        # They ask the core for messages that may have to be unpacked.
        self.readers = ThreadPoolExecutor(_READERS, "grpc-read")
        self._calls: set[Call] = set()
        # Those of them whose status was not handed over yet, without streams.
        self._unanswered = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopping = False
        self._started = False

    def bind(self, host: str, port: int, tls: Tls | None = None) -> int:
        """Takes the port (0: a free one) and returns it. Raises `OSError` if it is taken."""
        add = self._add if tls is None else partial(self._add_secure, server_credentials(tls))
        return addresses.bind(add, addresses.joined(host, port))

    def bind_unix(self, path: Path) -> None:
        """Listens on a Unix socket as well. Raises `OSError` if another server does."""
        addresses.bind(self._add, addresses.prepare_unix(path))

    def listen(self) -> None:
        """Lets clients connect; their calls wait for `start`."""
        if not self._started:
            self._server.start()
            self._started = True

    async def start(self) -> None:
        """Begins to answer."""
        self.listen()
        for _ in range(_ACCEPTS):
            self._accept_next()
        self._pump.start()

    async def stop(self, grace_s: float) -> None:
        """Stops the server. It still accepts calls until none has arrived for 0.1 s (after 1 s at the latest).

        Accepted calls have `grace_s` seconds, counted from the start of `stop`; then they end with UNAVAILABLE. Calls
        whose request message has not come within half of that time would have too little left, so they end then.
        """
        if self._stopping:
            return
        if not self._started:
            # The core aborts the process if a bound server is dropped without a start and a shutdown.
            await self.start()
        deadline = self.loop.time() + grace_s
        # Calls that arrive at a core that is shutting down are CANCELLED, which no client tries again. So calls and
        # responses are held here until no call has come for a while: a client that waits for a response sends no more.
        # Then the core tells every client to go elsewhere, and after that they get their responses.
        self.gate.close(self.loop.time())
        self._draining.set()
        down: asyncio.Future[None] = self.loop.create_future()
        try:
            await lull(lambda: self.gate.last_call, deadline)
        finally:
            self._stopping = True
            self._server.shutdown(self._queue, lambda _: down.set_result(None))
            self.gate.open()
        await self._until_idle((deadline - self.loop.time()) / 2)
        for call in list(self._calls):
            if call.is_incomplete:
                call.refuse(_SHUTTING_DOWN)
        await self._until_idle(deadline - self.loop.time())
        for call in list(self._calls):
            call.refuse(_SHUTTING_DOWN)
        # The core is down when every client has read its last bytes and its connection is closed. `cancel_all_calls`
        # closes connections at once, which would take a response from a client that has not read it yet.
        left_s = max(deadline - self.loop.time(), _LAST_BYTES_LEAST_S)
        await asyncio.wait((down,), timeout=min(left_s, _LAST_BYTES_MOST_S))
        self._server.cancel_all_calls()
        await down
        self._server.destroy()
        # The core aborts the process if an operation begins on a queue that is shut down.
        await asyncio.to_thread(self.readers.shutdown)
        self._queue.shutdown()
        await self._pump.ended()

    def accepted(self) -> None:
        """Counts a call until `answered`."""
        self._unanswered += 1

    def answered(self) -> None:
        """Ends the count of a call: nothing of it is expected on the loop but events of the core."""
        self._unanswered -= 1

    def over(self, call: Call) -> None:
        """Forgets a call."""
        self._calls.discard(call)
        self.release_message(call)
        self.receiving.advance()
        if not self._calls:
            self._idle.set()

    def task_works(self) -> None:
        """Notes that a call has work for a task, which needs several turns of the loop."""
        self._tasks_at = self.loop.time()

    def _is_shared(self) -> bool:
        return self._elsewhere() or self.loop.time() - self._tasks_at < _SHARED_S

    def hold_message(self, call: Call, size: int) -> None:
        """Counts a message that has come, until a handler counts what it holds."""
        if size <= SMALL_BYTES:
            return
        call.message_bytes = memory_of(size)
        self._budget.add(call.message_bytes)

    def release_message(self, call: Call) -> None:
        """Gives back what `hold_message` has counted. Further calls do nothing."""
        if call.message_bytes:
            self._budget.give(call.message_bytes)
            call.message_bytes = 0

    def sending(self, call: Call) -> None:
        """Counts a response until `sent`."""
        self._budget.add(call.sending_bytes)
        self._unsent[call] = self.loop.time()
        self.receiving.watch()

    def sent(self, call: Call) -> None:
        """Gives back the memory of a response that the client has taken."""
        self._budget.give(call.sending_bytes)
        call.sending_bytes = 0
        del self._unsent[call]

    def _relieve(self, wanted: int) -> None:
        """Gives up the oldest responses that their clients do not read, until the rest fits into the budget.

        `wanted`: the bytes of a call that waits. If giving up all of them made no room for it, it waits for others.
        """
        latest = self.loop.time() - _UNREAD_S
        unread = [call for call, since in self._unsent.items() if since <= latest]
        too_many = self._budget.total_bytes - self._budget.limit_bytes
        if too_many + wanted <= sum(call.sending_bytes for call in unread):
            too_many += wanted
        for call in unread:
            if too_many <= 0:
                return
            too_many -= call.sending_bytes
            call.abandon()

    def _is_full(self) -> bool:
        return len(self._calls) >= self._budget.limit_bytes // 2 // CALL_BYTES

    def _add(self, address: str) -> int:
        return int(self._server.add_http2_port(address.encode()))

    def _add_secure(self, credentials: grpc.ServerCredentials, address: str) -> int:
        return int(self._server.add_http2_port(address.encode(), _core(credentials)))

    async def _until_idle(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._idle.wait(), max(0.0, seconds))
        except TimeoutError:
            return

    def _accept_next(self) -> None:
        if error := self._server.request_call(self._queue, self._queue, self._on_call):
            _log.error("grpc's core takes no more calls: error %s", error)

    def _on_call(self, event: Any) -> None:
        if not event.success:
            # The server is shutting down: this was a request for a call, not a call.
            return
        if not self._stopping:
            self._accept_next()
        call = self._new_call(event)
        self._calls.add(call)
        self._idle.clear()
        try:
            call.begin()
        except Exception:
            _log.exception("a call of %s could not be accepted", event.call_details.method)
            event.call.cancel(Code.INTERNAL.value, "internal error")
            self.over(call)

    def _new_call(self, event: Any) -> Call:
        method = self._methods.get(event.call_details.method)
        if len(self._calls) >= _LEAST_CALLS and self._is_full() and (method is None or not method.while_draining):
            self._budget.refused += 1
            return RefusedCall(self, event, _TOO_MANY)
        if method is None:
            return RefusedCall(self, event, _unknown(event))
        try:
            account = self._admit(method, event)
        except ServingError as error:
            return RefusedCall(self, event, status.of(error, method.name, method.statuses))
        kind = UnaryCall if method.kind is Kind.UNARY else StreamCall
        return kind(self, event, method, account)

    def _admit(self, method: Method, event: Any) -> Account | None:
        if self._guard is None:
            return None
        return admit(
            self._guard,
            method,
            event.invocation_metadata,
            lambda: event.call.peer().decode(errors="replace"),
            lambda: {key.decode(): values for key, values in cygrpc.auth_context(event.call).items()},
        )


def _core(credentials: grpc.ServerCredentials) -> Any:
    """Returns the core's own object: `grpc` has no other way to it."""
    return credentials._credentials  # type: ignore[attr-defined]  # noqa: SLF001


def _unknown(event: Any) -> Status:
    name = event.call_details.method.decode(errors="replace")
    return Status(Code.UNIMPLEMENTED, f"this server has no method {name[:200]}")
