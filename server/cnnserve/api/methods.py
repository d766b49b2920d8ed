"""The method table: every RPC by its full name, with its types and its handler. Knows no transport.

A handler takes plain protobuf messages and a `CallContext`, returns messages and raises `ServingError`s; a transport
brings the bytes in and carries the status out (`status.of`).
"""

import enum
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import Message

from cnnserve.api.status import STATUS, Code

CLASSIFIER = "cnnserve.v1.Classifier"
INFERENCE = "inference.GRPCInferenceService"


class Kind(enum.Enum):
    """How many messages travel each way."""

    UNARY = "unary"
    SERVER_STREAM = "server stream"
    STREAM = "stream"


@dataclass(frozen=True)
class CallContext:
    """What a handler may know of a call: its deadline on the monotonic clock in ns, None where it has none.

    `metadata` is what the caller sent beside its messages; filled for streams only.
    """

    deadline_ns: int | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


# Messages differ by method, so these are Any; the table's test calls every handler with its own types.
Unary = Callable[[Any, CallContext], Coroutine[Any, Any, Message]]
ServerStream = Callable[[Any, CallContext], AsyncIterator[Message]]
Stream = Callable[[AsyncIterator[Any], CallContext], AsyncIterator[Message]]


@dataclass(frozen=True)
class Method:
    """One RPC. `name` is "package.Service/Method"."""

    name: str
    request: type[Message]
    response: type[Message]
    handler: Unary | ServerStream | Stream
    kind: Kind = Kind.UNARY
    # Answered while the server drains, too: who asks whether it is ready wants a no, not an error.
    while_draining: bool = False
    statuses: Mapping[type[Exception], Code] = field(default_factory=lambda: STATUS)

    @property
    def service(self) -> str:
        """The full name of the service."""
        return self.name.rpartition("/")[0]

    @property
    def rpc(self) -> str:
        """The method's own name."""
        return self.name.rpartition("/")[2]
