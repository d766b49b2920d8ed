"""Where a client calls, within which limits, and what its failures mean. Imports neither grpc nor protobuf."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Protocol

from . import arguments, errors
from .connecting import unavailable
from .security import Tls, bearer

DEFAULT_ADDRESS: Final = "127.0.0.1:8001"

# gRPC's own names for targets, which it checks itself.
_SCHEMES: Final = ("dns:", "unix:", "unix-abstract:", "vsock:", "ipv4:", "ipv6:", "xds:")
_HOST_PORT: Final = re.compile(r"(?:\[[^\[\]/]+\]|[^:/\[\]\s]+):(?P<port>[0-9]{1,5})")

_RANGES: Final = (("max_message_mib", 1, 2047), ("retries", 0, 1000), ("connections", 1, 100))
_PUSHBACK: Final = "grpc-retry-pushback-ms"
_LONGEST_TIMEOUT_S: Final = 1e9  # gRPC takes what its clock cannot hold for a deadline in the past


class Status(Protocol):
    """A `grpc.StatusCode`."""

    @property
    def name(self) -> str:
        """NOT_FOUND, for instance."""


class Failure(Protocol):
    """What the errors of `grpc` and of `grpc.aio` have in common; their base class declares none of it."""

    def code(self) -> Status:
        """The status."""

    def details(self) -> str | None:
        """The status's text."""

    def trailing_metadata(self) -> Iterable[tuple[str, str | bytes]] | None:
        """What the server sent with the status."""


def checked_timeout(timeout_s: object) -> float:
    """`timeout_s` if it is a time that a call can have, else `InvalidInputError`."""
    expected = "a number of seconds, more than 0 and at most 1e9"
    return arguments.positive("timeout_s", timeout_s, _LONGEST_TIMEOUT_S, expected)


@dataclass(frozen=True)
class Target:
    """The servers a client calls, and its limits.

    Raises:
        InvalidInputError: there is no address or a malformed one, a limit is out of range, or a token cannot or must
            not be sent.
    """

    address: str | Sequence[str]
    timeout_s: float
    max_message_mib: int
    retries: int
    connections: int
    tls: Tls | bool
    token: str = field(repr=False)
    token_over_plain_text: bool
    addresses: tuple[str, ...] = field(init=False)
    metadata: tuple[tuple[str, str], ...] = field(init=False, repr=False)
    """What goes with every call."""

    def __post_init__(self) -> None:
        # A frozen dataclass sets what it derives in this way.
        put = partial(object.__setattr__, self)
        put("timeout_s", checked_timeout(self.timeout_s))
        for name, least, most in _RANGES:
            put(name, arguments.whole(name, getattr(self, name), least, most, f"a whole number, {least} to {most}"))
        if not isinstance(self.tls, bool | Tls):
            raise arguments.wrong("tls", self.tls, "True, False or Tls(root_certificates=...)")
        addresses = _addresses(self.address)
        header = bearer(self.token, addresses, encrypted=bool(self.tls), over_plain_text=self.token_over_plain_text)
        put("addresses", addresses)
        put("metadata", (header,) if header else ())

    def __str__(self) -> str:
        return ",".join(self.addresses)

    @property
    def channels(self) -> tuple[str, ...]:
        """One address per connection, in the order of their turns."""
        return self.addresses * self.connections

    @property
    def max_message_bytes(self) -> int:
        """The largest message sent or read."""
        return self.max_message_mib * 1024 * 1024

    @property
    def options(self) -> list[tuple[str, Any]]:
        """gRPC channel arguments."""
        return [
            ("grpc.max_send_message_length", self.max_message_bytes),
            ("grpc.max_receive_message_length", self.max_message_bytes),
            # All addresses of a name, a Kubernetes headless service, are used; gRPC alone would stick to the first.
            ("grpc.lb_policy_name", "round_robin"),
            # Channels to one address would otherwise share one connection.
            ("grpc.use_local_subchannel_pool", int(self.connections > 1)),
            # By itself gRPC waits a second before it connects again, in the end two minutes; an address that does not
            # answer at all would hold a call for 20 seconds.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 5000),
            ("grpc.min_reconnect_backoff_ms", 5000),
        ]

    def one_server(self, what: str) -> None:
        """Refuses what would change one of several servers and leave the others as they are."""
        if len(self.addresses) > 1:
            raise errors.InvalidInputError(
                f"{what} with {len(self.addresses)} addresses: make a client for each server"
            )

    def timeout(self, timeout_s: float | None) -> float:
        """A call's timeout in seconds; None is the client's own."""
        return self.timeout_s if timeout_s is None else checked_timeout(timeout_s)

    def error(self, failure: Failure, about: str, timeout_s: float, connection: int) -> errors.CnnserveError:
        """The exception for a failed call. `about` says what was asked, where the server gave no text of its own."""
        address = self.channels[connection]
        code = failure.code().name
        details = failure.details() or f"{about}: {code}"
        match code:
            case "UNAVAILABLE":
                return unavailable(address, details, encrypted=bool(self.tls))
            case "CANCELLED":
                # Nobody here cancels a call: a server that stops cut it off before it was looked at.
                return errors.UnavailableError(f"{address}: the server cut the call off ({details})")
            case "DEADLINE_EXCEEDED":
                return errors.DeadlineExceededError(f"no answer from {address} within {timeout_s:g} s ({details})")
            case "RESOURCE_EXHAUSTED":
                return _exhausted(details, failure)
            case _:
                return errors.from_status(code, details)


def _addresses(address: str | Sequence[str]) -> tuple[str, ...]:
    """Each address of a list, or of a text with commas."""
    if not isinstance(address, Iterable) or not all(isinstance(text, str) for text in address):
        raise arguments.wrong("address", address, "HOST:PORT, or several in a list or with commas between them")
    if isinstance(address, str):
        # gRPC's own lists of numbers have commas too.
        address = [address] if address.startswith(("ipv4:", "ipv6:")) else address.split(",")
    stripped = tuple(text.strip() for text in address)
    if not all(stripped) or not stripped:
        raise errors.InvalidInputError("address is empty: expected HOST:PORT, or several with commas between them")
    for text in stripped:
        _check_address(text)
    return stripped


def _check_address(address: str) -> None:
    """gRPC alone takes 65537 for port 1, and 443 where there is none."""
    if address.startswith(_SCHEMES):
        return
    match = _HOST_PORT.fullmatch(address)
    if match is None or not 1 <= int(match["port"]) <= 65535:
        raise errors.InvalidInputError(f"address is {address!r}: expected HOST:PORT, port 1 to 65535")


def _exhausted(details: str, failure: Failure) -> errors.ResourceExhaustedError:
    # Pair by pair: dict() trips over the metadata class of grpc.aio.
    pushback = next((value for key, value in failure.trailing_metadata() or () if key == _PUSHBACK), None)
    if isinstance(pushback, str) and pushback.isdecimal():  # gRPC: a negative or other value means never retry
        return errors.QueueFullError(details, retry_after_s=int(pushback) / 1000)
    if "larger than max" in details:
        details += "; send fewer images in one request, or raise the limit on the side that is named"
    return errors.ResourceExhaustedError(details)
