"""The addresses and limits of a client, and the exceptions for gRPC's statuses. Imports neither grpc nor protobuf."""

import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Protocol

from . import arguments, errors
from .connecting import unavailable
from .security import Tls, bearer, is_local

DEFAULT_ADDRESS: Final = "127.0.0.1:8001"

# Name schemes of gRPC. gRPC checks these addresses itself.
_SCHEMES: Final = ("dns:", "unix:", "unix-abstract:", "vsock:", "ipv4:", "ipv6:", "xds:")
_HOST_PORT: Final = re.compile(r"(?:\[[^\[\]/]+\]|[^:/\[\]\s]+):(?P<port>[0-9]{1,5})")

# The variables that gRPC reads, in its order.
_PROXIES: Final = ("grpc_proxy", "https_proxy", "http_proxy")

_RANGES: Final = (("max_message_mib", 1, 2047), ("retries", 0, 1000), ("connections", 1, 100))
# What a try may take, in ms. Servers read gRPC's own timeout; proxies that receive the call themselves, such as Ray
# Serve's, do not hand it on, but they do hand on metadata.
_TIMEOUT: Final = "cnnserve-timeout-ms"
# Ray Serve answers INTERNAL with the text of Ray's ActorDiedError or ActorUnavailableError if a replica is lost.
_LOST_REPLICA: Final = re.compile(r"The actor (?:\S+ is unavailable|died|is dead)")
_PUSHBACK: Final = "grpc-retry-pushback-ms"
_LONGEST_TIMEOUT_S: Final = 1e9  # For timeouts beyond the range of its clock, gRPC computes a deadline in the past.


class Status(Protocol):
    """The part of `grpc.StatusCode` that the client uses."""

    @property
    def name(self) -> str:
        """The name of the status, for example NOT_FOUND."""


class Failure(Protocol):
    """The methods that the errors of `grpc` and of `grpc.aio` share. Their base class does not declare them."""

    def code(self) -> Status:
        """Returns the status."""

    def details(self) -> str | None:
        """Returns the text of the status."""

    def trailing_metadata(self) -> Iterable[tuple[str, str | bytes]] | None:
        """Returns the metadata that the server sent with the status."""


def checked_timeout(timeout_s: object) -> float:
    """Returns `timeout_s`, in seconds, as a float. Raises `InvalidInputError` unless it is above 0 and at most 1e9."""
    expected = "a number of seconds above 0, at most 1e9"
    return arguments.positive("timeout_s", timeout_s, _LONGEST_TIMEOUT_S, expected)


@dataclass(frozen=True)
class Target:
    """The servers of a client, and its limits. `Client` describes the arguments.

    Raises:
        InvalidInputError: the address is missing or malformed, a limit is out of range, or the token may not be sent.
    """

    address: str | Sequence[str]
    timeout_s: float
    max_message_mib: int
    retries: int | None
    connections: int
    tls: Tls | bool
    token: str = field(repr=False)
    token_over_plain_text: bool
    addresses: tuple[str, ...] = field(init=False)
    metadata: tuple[tuple[str, str], ...] = field(init=False, repr=False)
    """gRPC metadata that every call sends."""

    def __post_init__(self) -> None:
        # A frozen dataclass can set derived fields only in this way.
        put = partial(object.__setattr__, self)
        put("timeout_s", checked_timeout(self.timeout_s))
        for name, least, most in _RANGES:
            if getattr(self, name) is None and name == "retries":
                continue
            put(name, arguments.whole(name, getattr(self, name), least, most, f"a whole number from {least} to {most}"))
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
        """The address of each connection, in the order in which they take turns."""
        return self.addresses * self.connections

    @property
    def max_message_bytes(self) -> int:
        """The maximum size in bytes of a message that the client sends or accepts."""
        return self.max_message_mib * 1024 * 1024

    def options(self, address: str) -> list[tuple[str, Any]]:
        """Returns the arguments of the gRPC channels to an address."""
        # A proxy that the environment names for other machines does not reach this one.
        direct = [("grpc.enable_http_proxy", 0)] if is_local(address) else []
        return [
            *direct,
            ("grpc.max_send_message_length", self.max_message_bytes),
            ("grpc.max_receive_message_length", self.max_message_bytes),
            # Use all IP addresses of a host name, for example of a headless service in Kubernetes. By default, gRPC
            # uses only the first.
            ("grpc.lb_policy_name", "round_robin"),
            # By default, channels to the same address share one connection.
            ("grpc.use_local_subchannel_pool", int(self.connections > 1)),
            # By default, gRPC waits 1 s before it connects again, later up to 2 minutes, and an address that does not
            # respond delays a call for 20 s. While it waits, every try fails, so it must not wait longer than a call.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.min_reconnect_backoff_ms", 5000),
        ]

    def metadata_of(self, timeout_s: float) -> tuple[tuple[str, str], ...]:
        """Returns the gRPC metadata of a unary call that may take `timeout_s` seconds."""
        return (*self.metadata, (_TIMEOUT, str(math.ceil(1000 * timeout_s))))

    def one_server(self, method: str) -> None:
        """Raises `InvalidInputError` if there are several servers, because `method` would change only one of them."""
        if len(self.addresses) > 1:
            raise errors.InvalidInputError(
                f"{method} changes one server, but this client has {len(self.addresses)} addresses: create a client "
                "for each server"
            )

    def timeout(self, timeout_s: float | None) -> float:
        """Returns the timeout of a call in seconds. None gives the timeout of the client."""
        return self.timeout_s if timeout_s is None else checked_timeout(timeout_s)

    def error(
        self, failure: Failure, about: str, timeout_s: float, connection: int, *, has_ended: Callable[[], bool]
    ) -> errors.CnnserveError:
        """Returns the exception for a failed call.

        Args:
            failure: the error that gRPC raised.
            about: names the call, for the case that the server gave no text.
            timeout_s: the timeout of the call in seconds.
            connection: the number of the connection.
            has_ended: returns whether the connection has ended.
        """
        address = self.channels[connection]
        code = failure.code().name
        details = failure.details() or f"{about}: {code}"
        match code:
            case "UNAVAILABLE":
                return unavailable(address, details, encrypted=bool(self.tls), proxy=_proxy(address))
            case "CANCELLED" if has_ended():
                # The client cancels only calls whose errors nobody reads. A server that stops may cancel calls that it
                # has not begun, so such a call may be tried again.
                return errors.UnavailableError(f"{address}: the server cancelled the call ({details}); try again later")
            case "INTERNAL" if _LOST_REPLICA.match(details):
                return errors.UnavailableError(f"{address}: the replica ended during the call ({details}); try again")
            case "DEADLINE_EXCEEDED":
                return errors.no_response(address, timeout_s, f" ({details})")
            case "RESOURCE_EXHAUSTED":
                return _exhausted(details, failure)
            case _:
                return errors.from_status(code, details)


def _proxy(address: str) -> str:
    return "" if is_local(address) else next((name for name in _PROXIES if os.environ.get(name)), "")


def _addresses(address: str | Sequence[str]) -> tuple[str, ...]:
    """Returns the addresses of a list, or of a text in which commas separate them."""
    if not isinstance(address, Iterable) or not all(isinstance(text, str) for text in address):
        raise arguments.wrong("address", address, "HOST:PORT, or several in a list or separated by commas")
    if isinstance(address, str):
        # One address of the schemes ipv4: and ipv6: may contain commas.
        address = [address] if address.startswith(("ipv4:", "ipv6:")) else address.split(",")
    stripped = tuple(text.strip() for text in address)
    if not all(stripped) or not stripped:
        raise errors.InvalidInputError("address is empty: expected HOST:PORT, or several separated by commas")
    for text in stripped:
        _check_address(text)
    return stripped


def _check_address(address: str) -> None:
    # gRPC would accept port 65537 as port 1, and use port 443 if there is none.
    if address.startswith(_SCHEMES):
        return
    match = _HOST_PORT.fullmatch(address)
    if match is None or not 1 <= int(match["port"]) <= 65535:
        raise errors.InvalidInputError(f"address is {address!r}: expected HOST:PORT with a port from 1 to 65535")


def _exhausted(details: str, failure: Failure) -> errors.ResourceExhaustedError:
    # Not through dict(), which fails with the metadata class of grpc.aio.
    pushback = next((value for key, value in failure.trailing_metadata() or () if key == _PUSHBACK), None)
    if isinstance(pushback, str) and pushback.isdecimal():  # gRPC: any other value forbids a retry
        return errors.QueueFullError(details, retry_after_s=int(pushback) / 1000)
    if "larger than max" in details:
        details += "; send fewer images or rows at once, or raise max_message_mib of the side that this text names"
    return errors.ResourceExhaustedError(details)
