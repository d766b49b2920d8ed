"""One call on grpc's core: its operations, its end, and what its handler does in between.

Facts of the core that this file relies on: `start_server_batch` returns an error and does not raise; a refused batch
never gives an event. At most one receive and one send may be pending. A message of None means that the client has sent
its last message, has left, or has sent one that is too large; the event's `success` is true in each case.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from grpc._cython import cygrpc  # type: ignore[attr-defined]

from cnnserve.access.accounts import Account
from cnnserve.api import status
from cnnserve.api.methods import CallContext, Kind, Method
from cnnserve.api.status import INTERNAL_TEXT, Code, Status
from cnnserve.transports.calls import headers_in, limits_images, parse, serialized
from cnnserve.transports.core.receiving import SMALL_BYTES, Turn

if TYPE_CHECKING:
    from cnnserve.transports.core.server import CoreTransport

_NO_FLAGS = 0
# An estimate of when memory is free again.
_RETRY_MS = 100
# Seconds since 1970; the core says "none" by a time that is centuries away.
_NO_DEADLINE = 1e11
# Operations without content may be shared by all calls.
_INITIAL_METADATA = cygrpc.SendInitialMetadataOperation((), _NO_FLAGS)
_STATUS_OK = cygrpc.SendStatusFromServerOperation((), Code.OK.value, b"", _NO_FLAGS)
_OK = Status(Code.OK, "")
_NO_METADATA: Mapping[str, str] = {}
_CANCELLED_ITSELF = Status(Code.INTERNAL, INTERNAL_TEXT)


class CallBroken(Exception):
    """The core refused an operation; nothing more can be said to this client."""


class Call:
    """A call that was accepted. It is over when the core has reported its end and its last response was sent."""

    __slots__ = (
        "_account",
        "_call",
        "_event",
        "_loop",
        "_said",
        "_sending",
        "_transport",
        "_turn",
        "closed",
        "message_bytes",
        "sending_bytes",
    )

    is_stream: ClassVar[bool] = False

    def __init__(self, transport: "CoreTransport", event: Any, account: Account | None = None) -> None:
        self._transport = transport
        self._event = event
        self._account = account
        self._call = event.call
        self._loop = transport.loop
        self._sending = False
        # Whether the status was handed over.
        self._said = False
        self._turn: Turn | None = None
        # Of a message that has come and that no handler counts yet.
        self.message_bytes = 0
        # Of a message that was handed over and has not been sent.
        self.sending_bytes = 0
        self.closed = False

    @property
    def is_incomplete(self) -> bool:
        """Whether the only message of the request has not come yet."""
        return False

    def begin(self) -> None:
        """Asks the core to report the call's end."""
        self._start((cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS),), self._on_close)

    def refuse(self, told: Status) -> None:
        """Ends the call with a status, whatever it is doing. Does nothing if it has one already."""
        self._leave()
        if not self._said and not self.closed and not self._sending:
            self._say(told)

    def abandon(self) -> None:
        """Ends the call although its client has not read what was sent."""
        self._leave()
        self._call.cancel(Code.RESOURCE_EXHAUSTED.value, "the response was not read, and the server needs its memory")

    def exhausted(self, text: str) -> None:
        """Ends the call, because there is no memory for its message."""
        self.refuse(Status(Code.RESOURCE_EXHAUSTED, text, _RETRY_MS))

    def cut_off(self) -> None:
        """Ends the call at once: its client does not take its status."""
        self._call.cancel(Code.RESOURCE_EXHAUSTED.value, "the server has no memory for the call")

    def _on_close(self, event: Any) -> None:
        self.closed = True
        if event.batch_operations[0].cancelled():
            self._leave()
        if self._turn is not None:
            # If the message is being read, the core holds what has come of it until its event.
            self._transport.receiving.withdraw(self._turn)
        self._check_over()

    def _ask(self) -> None:
        """Has the next message read as soon as there is memory for it."""
        self._turn = self._transport.receiving.ask(self._call.peer(), self)

    def read(self, *, aside: bool) -> None:
        """Asks the core for the message. If `aside`, a thread does it: to unpack 60 MiB takes 0.3 s."""
        try:
            if aside:
                self._transport.readers.submit(self._read_aside)
            else:
                self._start((cygrpc.ReceiveMessageOperation(_NO_FLAGS),), self._on_message)
        except (CallBroken, RuntimeError):
            # The pool is closed: the server is about to end.
            self._read_failed()

    def _read_aside(self) -> None:
        try:
            self._start((cygrpc.ReceiveMessageOperation(_NO_FLAGS),), self._on_message)
        except CallBroken:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._read_failed)

    def _read_failed(self) -> None:
        self._message_done(None)
        self._call.cancel(Code.INTERNAL.value, INTERNAL_TEXT)

    def _on_message(self, event: Any) -> None:
        data = event.batch_operations[0].message()
        if data is not None and not self.closed:
            self._transport.hold_message(self, len(data))
        self._message_done(None if data is None else len(data))
        self._handle(data)

    def _handle(self, data: bytes | None) -> None:
        """Goes on with a message; None if there is none."""

    def _parse(self, method: Method, data: bytes | None) -> Any:
        return parse(method, data, self._transport.max_message_bytes)

    def _message_done(self, size: int | None) -> None:
        turn, self._turn = self._turn, None
        if turn is not None:
            self._transport.receiving.done(turn, size)

    def _leave(self) -> None:
        """Stops the work: the client has left, its deadline has passed, or the server ends the call."""

    def _say(self, told: Status, message: bytes | None = None) -> None:
        """Sends the status and with it, for a unary call, the response."""
        self._said = True
        if told is _OK and message is not None:
            self._send((cygrpc.SendMessageOperation(message, _NO_FLAGS), _STATUS_OK), len(message))
            return
        operations = [] if message is None else [cygrpc.SendMessageOperation(message, _NO_FLAGS)]
        details = told.message.encode(errors="replace")
        trailers = tuple(told.trailers.items())
        operations.append(cygrpc.SendStatusFromServerOperation(trailers, told.code.value, details, _NO_FLAGS))
        self._send(operations, 0 if message is None else len(message))

    def _send(self, operations: Sequence[Any], size: int) -> None:
        self._start((_INITIAL_METADATA, *operations), self._on_sent)
        self._hand_over(size)

    def _hand_over(self, size: int) -> None:
        """A response is in memory until the client has taken it."""
        self._sending = True
        if size > SMALL_BYTES:
            self.sending_bytes = size
            self._transport.sending(self)

    def _on_sent(self, _: Any) -> None:
        self._sending = False
        if self.sending_bytes:
            self._transport.sent(self)
        self._check_over()

    def _check_over(self) -> None:
        if self.closed and not self._sending:
            self._transport.over(self)

    def _start(self, operations: tuple[Any, ...], tag: Any) -> None:
        error = self._call.start_server_batch(operations, tag)
        if error:
            raise CallBroken(f"grpc's core refused an operation: error {error}")

    def deadline_ns(self) -> int | None:
        """Returns the deadline of the call on the monotonic clock; None: it has none."""
        deadline = self._event.call_details.deadline
        if deadline >= _NO_DEADLINE:
            return None
        return time.monotonic_ns() + int((deadline - time.time()) * 1e9)

    def context(self, deadline_ns: int | None, metadata: Mapping[str, str] = _NO_METADATA) -> CallContext:
        """Returns what a handler may know of the call."""
        headers = headers_in(self._event.invocation_metadata)
        peer = self._call.peer().decode(errors="replace")
        return CallContext(deadline_ns, peer, self._account, metadata, **headers)


class RefusedCall(Call):
    """A call that gets a status at once, and whose message is never read."""

    __slots__ = ("_told",)

    def __init__(self, transport: "CoreTransport", event: Any, told: Status) -> None:
        super().__init__(transport, event)
        self._told = told

    def begin(self) -> None:
        """Ends the call."""
        super().begin()
        self._say(self._told)


class UnaryCall(Call):
    """One message in, one message and a status out."""

    __slots__ = ("_end_early", "_method")

    def __init__(self, transport: "CoreTransport", event: Any, method: Method, account: Account | None = None) -> None:
        super().__init__(transport, event, account)
        self._method = method
        self._end_early: Callable[[], object] | None = None

    @property
    def is_incomplete(self) -> bool:
        """Whether the request has not come yet."""
        return self._turn is not None

    def begin(self) -> None:
        """Reads the request."""
        super().begin()
        self._transport.accepted()
        self._ask()

    def _on_close(self, event: Any) -> None:
        if not self._said:
            self._transport.answered()
        super()._on_close(event)

    def _say(self, told: Status, message: bytes | None = None) -> None:
        self._transport.answered()
        super()._say(told, message)

    def _handle(self, data: bytes | None) -> None:
        gate = self._transport.gate
        if gate.is_open or self._method.while_draining:
            self._respond_to(data)
        else:
            gate.last_call = self._loop.time()
            gate.hold(partial(self._respond_to, data))

    def _respond_to(self, data: bytes | None) -> None:
        if self.closed or self._said:
            return
        try:
            deadline_ns = self.deadline_ns()
            if self._method.quick is not None and data is not None and not limits_images(self._account):
                self._transport.release_message(self)
                self._end_early = self._method.quick(data, deadline_ns, self._on_quick)
            if self._end_early is None and not self._said:
                context = self.context(deadline_ns)
                self._transport.task_works()
                task = self._loop.create_task(self._handler(self._parse(self._method, data), context))
                task.add_done_callback(self._on_done)
                self._end_early = task.cancel
        except Exception as error:
            self._answer(None, error)

    async def _handler(self, request: Any, context: CallContext) -> Any:
        handler: Any = self._method.handler
        # From here on the handler counts what it holds.
        self._transport.release_message(self)
        return await handler(request, context)

    def _on_quick(self, data: bytes | None, error: Exception | None) -> None:
        if error is not None:
            self._answer(None, error)
        else:
            self._say_or_hold(_OK, data)

    def _on_done(self, task: "asyncio.Task[Any]") -> None:
        if task.cancelled():
            if not self.closed and not self._said:
                self._say_or_hold(_CANCELLED_ITSELF)
            return
        error = task.exception()
        if error is not None and not isinstance(error, Exception):
            raise error
        self._answer(None if error else task.result(), error)

    def _answer(self, response: Any, error: Exception | None) -> None:
        data: bytes | None = None
        told = _OK
        if error is not None:
            # Raising the error here would make a cycle of it and this frame, with all that its handler held.
            told = status.of(error, self._method.name, self._method.statuses)
        else:
            try:
                data = serialized(response, self._transport.max_message_bytes)
            except Exception as failure:
                told = status.of(failure, self._method.name, self._method.statuses)
        self._say_or_hold(told, data)

    def _say_or_hold(self, told: Status, data: bytes | None = None) -> None:
        gate = self._transport.gate
        if gate.is_open or self._method.while_draining:
            self._respond(told, data)
        else:
            gate.hold(partial(self._respond, told, data))

    def _respond(self, told: Status, data: bytes | None) -> None:
        if not self.closed and not self._said:
            self._say(told, data)

    def _leave(self) -> None:
        if self._end_early is not None:
            self._end_early()


class StreamCall(Call):
    """Messages in and out, one after the other; its handler runs as a task."""

    __slots__ = ("_metadata_sent", "_method", "_received", "_sent", "_task")

    is_stream: ClassVar[bool] = True

    def __init__(self, transport: "CoreTransport", event: Any, method: Method, account: Account | None = None) -> None:
        super().__init__(transport, event, account)
        self._method = method
        self._metadata_sent = False
        self._sent: asyncio.Future[bool] | None = None
        self._received: asyncio.Future[bytes | None] | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def is_incomplete(self) -> bool:
        """Whether the request has not come yet, if it is one message."""
        return self._method.kind is Kind.SERVER_STREAM and self._turn is not None

    def begin(self) -> None:
        """Starts the handler."""
        super().begin()
        self._task = self._loop.create_task(self._run())

    async def _run(self) -> None:
        told = _OK
        try:
            await self._exchange()
        except asyncio.CancelledError:
            if self.closed or self._said:
                return
            told = _CANCELLED_ITSELF
        except CallBroken:
            self._call.cancel(Code.INTERNAL.value, INTERNAL_TEXT)
            return
        except Exception as error:
            told = status.of(error, self._method.name, self._method.statuses)
        if not self.closed and not self._said:
            await self._sent_before()
            self._say(told)

    async def _exchange(self) -> None:
        gate = self._transport.gate
        if not gate.is_open and not self._method.while_draining:
            gate.last_call = self._loop.time()
            await gate.passed()
        handler: Any = self._method.handler
        metadata = {key: value for key, value in self._event.invocation_metadata if isinstance(value, str)}
        context = self.context(self.deadline_ns(), metadata)
        requests = (
            self._requests() if self._method.kind is Kind.STREAM else self._parse(self._method, await self._receive())
        )
        async for response in handler(requests, context):
            data = serialized(response, self._transport.max_message_bytes)
            if not await self._write(data):
                return

    async def _requests(self) -> AsyncIterator[Any]:
        # The first message was counted as the call.
        while (data := await self._receive()) is not None:
            yield self._parse(self._method, data)
            if self._account is not None:
                await self._account.message()

    async def _receive(self) -> bytes | None:
        received: asyncio.Future[bytes | None] = self._loop.create_future()
        self._received = received
        self._ask()
        return await received

    def _handle(self, data: bytes | None) -> None:
        self._transport.release_message(self)
        self._transport.task_works()
        if self._received is not None and not self._received.done():
            self._received.set_result(data)

    async def _write(self, data: bytes) -> bool:
        """Sends a message as soon as the client takes it; returns whether it may still take more."""
        self._sent = self._loop.create_future()
        self._send([cygrpc.SendMessageOperation(data, _NO_FLAGS)], len(data))
        return await asyncio.shield(self._sent)

    def _send(self, operations: Sequence[Any], size: int) -> None:
        first = () if self._metadata_sent else (_INITIAL_METADATA,)
        self._metadata_sent = True
        self._start((*first, *operations), self._on_sent)
        self._hand_over(size)

    async def _sent_before(self) -> None:
        """Waits for a message that is still on its way: the core takes one send at a time."""
        if self._sending and self._sent is not None:
            await self._sent

    def _on_sent(self, event: Any) -> None:
        if self._sent is not None and not self._sent.done():
            self._sent.set_result(bool(event.success))
        super()._on_sent(event)

    def _leave(self) -> None:
        if self._task is not None:
            self._task.cancel()
