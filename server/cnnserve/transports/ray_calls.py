"""The method table for calls that Ray Serve carries: bytes in, bytes or a status out. Imports neither ray nor grpc.

Serve's proxies receive the calls and hand them to a replica: the bytes of the request, what the client sent beside it,
and its address. The deadline of the client does not come along, so clients send it once more, as `methods.TIMEOUT`.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2

from cnnserve.access.guard import Guard
from cnnserve.api import status
from cnnserve.api.methods import TIMEOUT, CallContext, Kind, Method
from cnnserve.api.status import Code, Status
from cnnserve.errors import DeadlineExceeded, InferenceFailed, InvalidInput, ShuttingDown, Unsupported
from cnnserve.transports.calls import admit, headers_in, parse, quick, serialized
from cnnserve.wire import classifier_pb2, open_inference_pb2

_LONGEST_MS = 10**12
_SERVICES: tuple[ServiceDescriptor, ...] = (
    classifier_pb2.DESCRIPTOR.services_by_name["Classifier"],
    open_inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"],
    health_pb2.DESCRIPTOR.services_by_name["Health"],
)
# Their names have a meaning in one process or on one machine only.
_LOCAL = "SharedMemory"


def _kind(client_streaming: bool, server_streaming: bool) -> Kind:
    if client_streaming:
        return Kind.STREAM
    return Kind.SERVER_STREAM if server_streaming else Kind.UNARY


# Not in the method table either.
_NOT_SERVED = "grpc.health.v1.Health/List"
# Every other RPC of the three services: its full name and its kind. Serve knows an RPC by the last part of its name.
RPCS = {
    f"{service.full_name}/{rpc.name}": _kind(rpc.client_streaming, rpc.server_streaming)
    for service in _SERVICES
    for rpc in service.methods
    if f"{service.full_name}/{rpc.name}" != _NOT_SERVED
}


class Sent(NamedTuple):
    """What a client sent beside its messages: metadata and, as grpc names it, its address."""

    metadata: tuple[tuple[str, Any], ...] = ()
    peer: str = ""


@dataclass(frozen=True)
class Reply:
    """The response to a call, or the status of its error."""

    data: bytes = b""
    status: Status | None = None

    def SerializeToString(self) -> bytes:  # noqa: N802 - Serve calls it as if this were a protobuf message
        """Returns the bytes of the response."""
        return self.data


# What a call needs while it is answered.
Hold = Callable[[], AbstractAsyncContextManager[object]]


class StreamEnded(Exception):
    """Ends a stream with a status."""

    def __init__(self, told: Status) -> None:
        # All that pickle needs to make it again.
        super().__init__(told)
        self.status = told


def timeout_s(metadata: Iterable[tuple[str, Any]]) -> float | None:
    """Returns what the client allows its call, in seconds; None: it does not say. Raises `InvalidInput`."""
    text = next((value for key, value in metadata if key == TIMEOUT), None)
    if text is None:
        return None
    if not (isinstance(text, str) and text.isascii() and text.isdecimal() and int(text) <= _LONGEST_MS):
        raise InvalidInput(f"metadata {TIMEOUT} is {text!r:.100}, expected a whole number of milliseconds")
    return int(text) / 1000


def with_timeout(sent: Sent, left_s: float | None) -> Sent:
    """Returns `sent` with the time that is left of the client's timeout."""
    if left_s is None:
        return sent
    kept = [pair for pair in sent.metadata if pair[0] != TIMEOUT]
    return Sent((*kept, (TIMEOUT, str(max(0, math.floor(left_s * 1000))))), sent.peer)


class Calls:
    """Answers calls with the handlers of a method table. Use on one event loop.

    `stream_s`: a stream is read for this long. Then it answers what it has read and ends as UNAVAILABLE, so that its
    client goes on at another replica: Serve does not tell replicas that they are to end.
    """

    def __init__(
        self, methods: Iterable[Method], max_message_bytes: int, guard: Guard | None = None, stream_s: float = 15.0
    ) -> None:
        self._methods = {method.name: method for method in methods if _LOCAL not in method.rpc}
        self._max_bytes = max_message_bytes
        self._guard = guard
        self._stream_s = stream_s

    async def unary(self, name: str, data: bytes, sent: Sent, hold: Hold = nullcontext) -> Reply:
        """Returns the response of a unary RPC, or the status of its error.

        `hold` is entered once the client has been admitted, and left when there is a response.
        """
        method = None
        try:
            method = self._method(name)
            context = self._context(method, sent)
            async with hold():
                response = await quick(method, data, context)
                if response is None:
                    handler: Any = method.handler
                    response = serialized(await handler(parse(method, data, self._max_bytes), context), self._max_bytes)
            return Reply(response)
        except (Exception, asyncio.CancelledError) as error:
            return Reply(status=_status(error, name, method))

    async def one(self, name: str, data: bytes, sent: Sent, hold: Hold = nullcontext) -> Reply:
        """Returns the response to the only message of a stream, as that stream would have it. `hold`: see `unary`."""

        async def messages() -> AsyncIterator[bytes]:
            yield data

        try:
            replies = [reply async for reply in self.stream(name, messages(), sent, hold)]
        except StreamEnded as ended:
            return Reply(status=ended.status)
        return Reply(replies[0]) if replies else Reply()

    async def stream(
        self, name: str, messages: AsyncIterator[bytes] | bytes, sent: Sent, hold: Hold = nullcontext
    ) -> AsyncIterator[bytes]:
        """Yields the responses of a stream. `messages` are bytes if the client sends one only. `hold`: see `unary`.

        Raises `StreamEnded`.
        """
        method = None
        try:
            method = self._method(name)
            context = self._context(method, sent)
            if isinstance(messages, bytes):
                request: Any = parse(method, messages, self._max_bytes)
            else:
                request = self._parsed(method, messages, context)
            handler: Any = method.handler
            async with hold():
                async for response in handler(request, context):
                    yield serialized(response, self._max_bytes)
        except (Exception, asyncio.CancelledError) as error:
            raise StreamEnded(_status(error, name, method)) from None

    def _method(self, name: str) -> Method:
        if name in self._methods:
            return self._methods[name]
        raise Unsupported(f"{name} is not served by Ray Serve: shared memory does not reach its replicas")

    def _context(self, method: Method, sent: Sent) -> CallContext:
        account = admit(self._guard, method, sent.metadata, lambda: sent.peer, dict)
        allowed_s = timeout_s(sent.metadata)
        if allowed_s == 0:
            raise DeadlineExceeded("the deadline passed before the request reached its replica; allow more time")
        deadline_ns = None if allowed_s is None else time.monotonic_ns() + int(allowed_s * 1e9)
        context = CallContext(deadline_ns, sent.peer, account=account, **headers_in(sent.metadata))
        if method.kind is Kind.UNARY:
            return context
        return replace(context, metadata={key: value for key, value in sent.metadata if isinstance(value, str)})

    async def _parsed(self, method: Method, messages: AsyncIterator[bytes], context: CallContext) -> AsyncIterator[Any]:
        async for data in limited(messages, self._stream_s):
            yield parse(method, data, self._max_bytes)
            if context.account is not None:
                await context.account.message()


async def limited(messages: AsyncIterator[bytes], seconds: float) -> AsyncIterator[bytes]:
    """Yields the messages of a stream. Raises `ShuttingDown` if the stream has not ended after `seconds`.

    A message that comes at this moment may be lost, which the client sees: it has no response.
    """
    ends = asyncio.get_running_loop().time() + seconds
    try:
        while True:
            async with asyncio.timeout_at(ends):
                data = await anext(messages, None)
            if data is None:
                return
            yield data
    except TimeoutError:
        raise ShuttingDown(
            f"streams end after {seconds:g} s here, so that replicas can be replaced; send the requests without a "
            "response on a new stream"
        ) from None


def _status(error: BaseException, name: str, method: Method | None) -> Status:
    """Returns the status of an error. Raises a cancellation that came from outside again."""
    if isinstance(error, Exception):
        return status.of(error, name, method.statuses if method else status.STATUS)
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise error
    return status.of(InferenceFailed("the handler cancelled itself"), name)


def is_own_fault(told: Status) -> bool:
    """Returns whether a status means that the server failed, which Serve counts as an error."""
    return told.code in (Code.INTERNAL, Code.UNKNOWN, Code.DATA_LOSS)


def reply_to(error: Exception, name: str) -> Reply:
    """Returns the status of an error that arose outside of a handler."""
    return Reply(status=status.of(error, name))
