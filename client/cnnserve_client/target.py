"""Where a client calls, within which limits, and what its failures mean. Imports neither grpc nor protobuf."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from . import errors

DEFAULT_ADDRESS: Final = "127.0.0.1:8001"

# The texts with which gRPC itself, 1.63 to 1.85, reports that no connection was made. The status is the one a loading
# model has too; should the words change, the error stays an UnavailableError that names the address.
_NOT_CONNECTED: Final = (
    "connections to all backends failing",
    "failed to connect to all addresses",
    "dns resolution failed",
    "errors resolving",
)

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


def checked_timeout(timeout_s: float) -> float:
    """`timeout_s` if it is a time that a call can have, else `InvalidInputError`."""
    if not 0 < timeout_s <= _LONGEST_TIMEOUT_S:  # False for NaN
        raise errors.InvalidInputError(f"timeout_s is {timeout_s}: expected more than 0 and at most 1e9 seconds")
    return timeout_s


@dataclass(frozen=True)
class Target:
    """A server's address and a client's limits.

    Raises:
        InvalidInputError: the address is empty or a limit out of range.
    """

    address: str
    timeout_s: float
    max_message_mib: int

    def __post_init__(self) -> None:
        if not self.address:
            raise errors.InvalidInputError("address is empty: expected HOST:PORT")
        checked_timeout(self.timeout_s)
        if not 1 <= self.max_message_mib < 2048:
            raise errors.InvalidInputError(f"max_message_mib is {self.max_message_mib}: expected 1 to 2047")

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
        ]

    def timeout(self, timeout_s: float | None) -> float:
        """A call's timeout in seconds; None is the client's own."""
        return self.timeout_s if timeout_s is None else checked_timeout(timeout_s)

    def error(self, failure: Failure, about: str, timeout_s: float) -> errors.CnnserveError:
        """The exception for a failed call. `about` says what was asked, where the server gave no text of its own."""
        code = failure.code().name
        details = failure.details() or f"{about}: {code}"
        match code:
            case "UNAVAILABLE":
                return self._unavailable(details)
            case "CANCELLED":
                # Nobody here cancels a call: a server that stops cut it off before it was looked at.
                return self._unavailable(f"the server cut the call off ({details})")
            case "DEADLINE_EXCEEDED":
                return errors.DeadlineExceededError(f"no answer from {self.address} within {timeout_s:g} s ({details})")
            case "RESOURCE_EXHAUSTED":
                return _exhausted(details, failure)
            case _:
                return errors.from_status(code, details)

    def _unavailable(self, details: str) -> errors.UnavailableError:
        if any(words in details.lower() for words in _NOT_CONNECTED):
            return errors.ConnectionFailedError(
                f"cannot reach a server at {self.address}: check that `cnnserve serve` runs there and that this is "
                f"its gRPC port, not its HTTP port ({details})"
            )
        return errors.UnavailableError(f"{self.address}: {details}")


def _exhausted(details: str, failure: Failure) -> errors.ResourceExhaustedError:
    # Pair by pair: dict() trips over the metadata class of grpc.aio.
    pushback = next((value for key, value in failure.trailing_metadata() or () if key == _PUSHBACK), None)
    if isinstance(pushback, str) and pushback.isdecimal():  # gRPC: a negative or other value means never retry
        return errors.QueueFullError(details, retry_after_s=int(pushback) / 1000)
    if "larger than max" in details:
        details += "; send fewer images in one request, or raise the limit on the side that is named"
    return errors.ResourceExhaustedError(details)
