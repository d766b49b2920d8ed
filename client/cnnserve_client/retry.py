"""Decides whether, when and on which connection a failed call is tried again. The clients wait and send."""

import random
import threading
import time
from collections.abc import Callable, Collection
from typing import Final

from .errors import CnnserveError, DeadlineExceededError, QueueFullError, UnavailableError
from .errors import ConnectionFailedError as NotConnected

_FIRST_S: Final = 0.1
_LONGEST_S: Final = 5.0
# Of a call that waits alone: a server that restarts needs about this long.
_LONGEST_OF_A_CALL_S: Final = 2.0
_FIRST_REST_S: Final = 0.5
_LONGEST_REST_S: Final = 30.0

Clock = Callable[[], float]


def back_off_s(tries: int, longest_s: float = _LONGEST_S) -> float:
    """Returns the seconds to wait after `tries` failed tries: 0.1 s, doubled with each try up to `longest_s`.

    A random part of at most half is subtracted, so that clients which failed together do not return together.
    """
    longest = min(longest_s, _FIRST_S * 2.0 ** min(tries - 1, 10))
    return longest * random.uniform(0.5, 1)  # noqa: S311 - not for cryptography


class Rotation:
    """Chooses the connection of each try in turn. A connection that failed is avoided for a time. Thread-safe.

    This time is 0.5 s after the first failure and doubles with each further failure in a row, up to 30 s.
    """

    def __init__(self, count: int, clock: Clock = time.monotonic) -> None:
        self._count = count
        self._clock = clock
        self._turn = 0
        self._failures = [0] * count
        self._rests_until = [0.0] * count
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._count

    def take(self, tried: Collection[int] = ()) -> int:
        """Returns the number of the connection for the next try, if possible one that is not in `tried`.

        Among these it prefers a connection that is not avoided, else the one that is avoided for the shortest time.
        """
        with self._lock:
            now = self._clock()
            order = ((self._turn + step) % self._count for step in range(self._count))
            number = min(order, key=lambda n: (n in tried, max(0.0, self._rests_until[n] - now)))
            self._turn = number + 1
            return number

    def failed(self, number: int) -> None:
        """Records that a server could not be reached, was not ready or did not respond in time."""
        with self._lock:
            rest_s = min(_LONGEST_REST_S, _FIRST_REST_S * 2.0 ** min(self._failures[number], 10))
            self._failures[number] += 1
            self._rests_until[number] = self._clock() + rest_s

    def worked(self, number: int) -> None:
        """Records a response, so that the connection is no longer avoided."""
        if self._failures[number]:
            with self._lock:
                self._failures[number], self._rests_until[number] = 0, 0.0


class Attempts:
    """Decides about the tries of one call within its timeout.

    Args:
        rotation: chooses the connections.
        safe: the call changes nothing on the server. Such a call is tried again if the server was UNAVAILABLE or named
            a time after which to try again. Any other call is tried again only if no connection was established.
        retries: how many times the client may wait and try again; None: until the deadline. Tries on another
            connection, which need no wait, are not counted. If `retries` is 0, the call is sent only once.
        timeout_s: seconds for all tries and waits together.
        light: the call takes a server almost no time. Each connection that has not been tried gets an equal share of
            the remaining time, so that one silent server does not use all of it.
        clock: returns the time in seconds.
    """

    def __init__(
        self,
        rotation: Rotation,
        *,
        safe: bool,
        retries: int | None,
        timeout_s: float,
        light: bool = False,
        clock: Clock = time.monotonic,
    ) -> None:
        self._rotation = rotation
        self._safe = safe
        self._light = light and retries != 0
        self._retries = retries
        self._clock = clock
        self._ends = clock() + timeout_s
        self._tried: list[int] = []
        self._waits = 0

    @property
    def remaining_s(self) -> float:
        """The seconds until the deadline of the call, at least 0."""
        return max(0.0, self._ends - self._clock())

    @property
    def try_s(self) -> float:
        """The timeout in seconds of the try that `begin` started."""
        return self.remaining_s / (1 + self._untried) if self._light else self.remaining_s

    def begin(self) -> int:
        """Starts the next try and returns the number of its connection."""
        self._tried.append(self._rotation.take(self._tried))
        return self._tried[-1]

    def wait_s(self, error: CnnserveError) -> float | None:
        """Returns the seconds to wait before the next try, or None if `error` is final."""
        if isinstance(error, UnavailableError | DeadlineExceededError):
            self._rotation.failed(self._tried[-1])
        if self._light and isinstance(error, DeadlineExceededError) and self._untried:
            return 0.0
        if not self._may_repeat(error):
            return None
        if isinstance(error, UnavailableError) and self._untried:
            return 0.0
        if self._waits == self._retries:
            return None
        self._waits += 1
        wait_s = error.retry_after_s if isinstance(error, QueueFullError) else self._back_off_s()
        self._tried.clear()
        # If the wait would pass the deadline, the caller gets the error now instead of at the deadline.
        return wait_s if wait_s < self.remaining_s else None

    def _back_off_s(self) -> float:
        wait_s = back_off_s(self._waits, _LONGEST_OF_A_CALL_S)
        # Until the deadline means that a try is made shortly before it, even if the next wait would be longer.
        return wait_s if self._retries is not None else min(wait_s, max(_FIRST_S / 2, self.remaining_s / 2))

    @property
    def _untried(self) -> int:
        """The number of connections that have not been tried since the last wait."""
        return len(self._rotation) - len(set(self._tried))

    def _may_repeat(self, error: CnnserveError) -> bool:
        if self._retries == 0:
            return False
        if self._safe:
            return isinstance(error, UnavailableError | QueueFullError)
        return isinstance(error, NotConnected)
