"""What both gRPC transports share: reading a message, writing a response, and the gate that holds calls at the end."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from google.protobuf.message import DecodeError, Message

from cnnserve.access.accounts import Account
from cnnserve.access.guard import Caller, Guard
from cnnserve.access.scopes import Scope
from cnnserve.api import answer_size
from cnnserve.api.field_count import check_fields
from cnnserve.api.methods import HEADERS, CallContext, Method
from cnnserve.errors import InvalidInput
from cnnserve.transports.credentials import client_names

# Calls that arrive faster than the server accepts them. Beyond its own limits of 1,000 and 3,000, grpc's core would end
# them as CANCELLED, which no client tries again. Each takes about 20 KiB, so there is a limit.
_PENDING = 16_384
# For the first frame of a client, and for calls of a client that has none. Clients connect again by themselves.
_HANDSHAKE_MS = 20_000
_IDLE_MS = 30 * 60_000


@dataclass(frozen=True)
class PeerLimits:
    """What clients may send beside their messages, and how responses are compressed for those that accept it.

    `handshake_ms`: the time that clients have for their first frame. `compression_level`: from 0 (none) to 3.
    """

    min_ping_interval_s: float = 5.0
    max_metadata_bytes: int = 64 * 2**10
    handshake_ms: int = _HANDSHAKE_MS
    compression_level: int = 0
    # 0: no limit.
    max_connections: int = 0
    max_streams: int = 0
    max_age_s: float = 0.0
    # What calls have after that age.
    age_grace_s: float = 30.0


def channel_arguments(max_message_bytes: int, peers: PeerLimits) -> list[tuple[str, int]]:
    """Returns the arguments of grpc's core that hold for every gRPC server."""
    arguments = [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        # With a level, the core takes an algorithm that the client accepts. With a fixed algorithm, clients that do not
        # know it would get an error.
        ("grpc.default_compression_level", peers.compression_level),
        # Two servers on one port would share its clients at random.
        ("grpc.so_reuseport", 0),
        ("grpc.server.max_pending_requests", _PENDING),
        ("grpc.server.max_pending_requests_hard_limit", 2 * _PENDING),
        # Load balancers and clients behind them ping more often than every 5 minutes, which is grpc's default.
        ("grpc.http2.min_ping_interval_without_data_ms", int(1000 * peers.min_ping_interval_s)),
        ("grpc.keepalive_permit_without_calls", 1),
        # Between two different limits, grpc refuses calls at random.
        ("grpc.max_metadata_size", peers.max_metadata_bytes),
        ("grpc.absolute_max_metadata_size", peers.max_metadata_bytes),
        ("grpc.server_handshake_timeout_ms", peers.handshake_ms),
        ("grpc.max_connection_idle_ms", _IDLE_MS),
    ]
    if peers.max_connections:
        arguments.append(("grpc.max_allowed_incoming_connections", peers.max_connections))
    if peers.max_streams:
        arguments.append(("grpc.max_concurrent_streams", peers.max_streams))
    if peers.max_age_s:
        arguments.append(("grpc.max_connection_age_ms", int(1000 * peers.max_age_s)))
        arguments.append(("grpc.max_connection_age_grace_ms", int(1000 * peers.age_grace_s)))
    return arguments


def limits_images(account: Account | None) -> bool:
    """Returns whether the images of a request have to be counted, which `Method.quick` does not."""
    return account is not None and account.limits_images


async def quick(method: Method, data: bytes | None, call: CallContext) -> bytes | None:
    """Returns the response to a request that the method knows by its bytes, None if it does not."""
    if method.quick is None or data is None or limits_images(call.account):
        return None
    future: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()

    def respond(response: bytes | None, error: Exception | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(response)

    end_early = method.quick(data, call.deadline_ns, respond)
    if end_early is None:
        return None
    try:
        return await future
    finally:
        # If the call was cancelled; otherwise it does nothing.
        end_early()


def parse(method: Method, data: bytes | None, most_bytes: int) -> Any:
    """Returns the request message. Raises `InvalidInput` if there are no bytes, or bytes of another message.

    `most_bytes` is the largest message: lists of numbers may not become larger when they are parsed.
    """
    name = method.request.DESCRIPTOR.full_name
    if data is None:
        raise InvalidInput(f"the call has no request message; send one {name}")
    check_fields(data, method.request.DESCRIPTOR, most_bytes)
    try:
        return method.request.FromString(data)
    except DecodeError as error:
        raise InvalidInput(f"the {len(data)} bytes of the request are no {name}: {error}") from error


def serialized(response: Message | bytes, max_bytes: int) -> bytes:
    """Returns the bytes of a response. Raises `InvalidInput` if there are more than `max_bytes`."""
    data = response if isinstance(response, bytes) else response.SerializeToString()
    answer_size.check(len(data), max_bytes)
    return data


def admit(
    guard: Guard | None,
    method: Method,
    metadata: Iterable[tuple[Any, Any]],
    peer: Callable[[], str],
    properties: Callable[[], Mapping[str, Iterable[bytes]]],
) -> Account | None:
    """Returns the client's account. Raises a `ServingError` if the client may not call the method.

    Call it before the request is read.
    `peer` and `properties` of the connection are called if they are needed only.
    """
    if guard is None or method.scope is Scope.OPEN:
        return None
    metadata = [*metadata]
    authorization = tuple(value for key, value in metadata if key == "authorization")
    forwarded = ",".join(value for key, value in metadata if key == "x-forwarded-for")
    names = client_names(properties()) if guard.wants_names else ()
    return guard.admit(method.name, method.scope, Caller(peer(), authorization, names, forwarded))


def headers_in(metadata: Iterable[tuple[Any, Any]]) -> dict[str, Any]:
    """Returns the headers that `CallContext` has, by its fields."""
    return {HEADERS[key]: value for key, value in metadata if key in HEADERS}


class Gate:
    """Holds calls and their responses while the server turns to its end; shared by all calls. Use on one event loop."""

    def __init__(self) -> None:
        self.is_open = True
        self.last_call = 0.0
        self._held: list[Callable[[], object]] = []

    def close(self, now: float) -> None:
        """Holds everything from now on."""
        self.is_open = False
        self.last_call = now

    def open(self) -> None:
        """Goes on with everything that was held, in the order of its arrival, and holds nothing any more."""
        self.is_open = True
        held, self._held = self._held, []
        for go_on in held:
            go_on()

    def hold(self, go_on: Callable[[], object]) -> None:
        """Keeps a call or a response until the gate opens."""
        self._held.append(go_on)

    async def arrived(self) -> None:
        """Notes a call that arrives while the gate is closed, and waits until it is open."""
        if not self.is_open:
            self.last_call = asyncio.get_running_loop().time()
            await self.passed()

    async def passed(self) -> None:
        """Waits until the gate is open."""
        if not self.is_open:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.hold(partial(_wake, future))
            await future


def _wake(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
