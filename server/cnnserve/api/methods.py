"""The method table: every RPC by its full name, with its message types and its handler. Knows no transport.

A handler takes protobuf messages and a `CallContext`, returns protobuf messages and raises `ServingError`s. A transport
parses the bytes of requests, and sends the responses, or the status of an error (`status.of`).
"""

import enum
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import Message

from cnnserve.access.accounts import Account
from cnnserve.access.scopes import Scope
from cnnserve.api.status import STATUS, Code

CLASSIFIER = "cnnserve.v1.Classifier"
INFERENCE = "inference.GRPCInferenceService"


class Kind(enum.Enum):
    """How many messages a call has in each direction."""

    UNARY = "unary"
    SERVER_STREAM = "server stream"
    STREAM = "stream"


# Headers of a request, and the fields of `CallContext` that have them.
HEADERS = {"x-request-id": "request_id", "traceparent": "traceparent", "tracestate": "tracestate"}

# What a call may take, in ms, as a header. Clients send it beside gRPC's own timeout, which proxies that receive the
# call themselves, such as Ray Serve's, do not hand on.
TIMEOUT = "cnnserve-timeout-ms"


@dataclass
class Record:
    """What a handler did for a request, for its access line. Times in ns."""

    model: str = ""
    version: str = ""
    images: int = 0
    queue_ns: int = 0
    preprocess_ns: int = 0
    compute_ns: int = 0
    # When the run began, on the monotonic clock (0: there was none), and the number of rows in it.
    run_ns: int = 0
    batch_size: int = 0


@dataclass(frozen=True)
class CallContext:
    """What a handler may know of a call: its deadline in ns on the monotonic clock (None: it has none), its client.

    `client` names the connection, such as "ipv4:127.0.0.1:4711"; `account` is the client's, if the server knows or
    limits its clients. `metadata` is what the client sent beside its messages. gRPC's streams fill it, nothing else
    does. `request_id`, `traceparent` and `tracestate` are the client's headers of these names. `record` is to be
    filled, if it is set.
    """

    deadline_ns: int | None = None
    client: str = ""
    account: Account | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    request_id: str = ""
    traceparent: str = ""
    tracestate: str = ""
    record: Record | None = None

    @property
    def who(self) -> str:
        """The name of the client, such as "token web", "" if it has not shown who it is."""
        return self.account.who if self.account else ""

    def images(self, count: int) -> AbstractContextManager[None]:
        """Counts images of the client while inside. Raises as `Account.images`."""
        return self.account.images(count) if self.account else nullcontext()


# Every method has other message types, so these are Any; the tests call every handler with its own types.
# A unary handler may also return the bytes of its message.
Unary = Callable[[Any, CallContext], Coroutine[Any, Any, Message | bytes]]
ServerStream = Callable[[Any, CallContext], AsyncIterator[Message]]
Stream = Callable[[AsyncIterator[Any], CallContext], AsyncIterator[Message]]
# From a request's bytes and its deadline; calls back with the response's bytes or an error, and returns how to end the
# request early. Returns None for bytes that the handler has to answer.
Quick = Callable[[bytes, int | None, Callable[[bytes | None, Exception | None], None]], Callable[[], None] | None]


@dataclass(frozen=True)
class Method:
    """One RPC. `name` is "package.Service/Method"."""

    name: str
    request: type[Message]
    response: type[Message]
    handler: Unary | ServerStream | Stream
    # What a client needs to call it, where the server has tokens or scopes of certificates.
    scope: Scope
    kind: Kind = Kind.UNARY
    # Also served while the server drains: a client that asks whether the server is ready needs the response "not
    # ready", not an error.
    while_draining: bool = False
    statuses: Mapping[type[Exception], Code] = field(default_factory=lambda: STATUS)
    # Answers some requests from their bytes, more cheaply than the handler: see `known_requests`.
    quick: Quick | None = None

    @property
    def service(self) -> str:
        """The full name of the service, "package.Service"."""
        return self.name.rpartition("/")[0]

    @property
    def rpc(self) -> str:
        """The name of the method without its service."""
        return self.name.rpartition("/")[2]
