"""When a failed call is tried again, and on which connection. Decides only: sleeping and sending are the clients'."""

import random
import threading
import time
from collections.abc import Callable, Collection
from typing import Final

from .errors import CnnserveError, DeadlineExceededError, QueueFullError, UnavailableError
from .errors import ConnectionFailedError as NotConnected

_FIRST_S: Final = 0.1
_LONGEST_S: Final = 5.0
_FIRST_REST_S: Final = 0.5
_LONGEST_REST_S: Final = 30.0

Clock = Callable[[], float]


def back_off_s(tries: int) -> float:
    """Seconds before the next try after `tries` vain ones: doubling from 0.1 to 5, a random half of it taken off."""
    longest = min(_LONGEST_S, _FIRST_S * 2.0 ** min(tries - 1, 10))
    return longest * random.uniform(0.5, 1)  # noqa: S311 - spreads clients out, keeps no secret


class Rotation:
    """Whose turn it is among a client's connections. One that fails rests, longer each time; threads may share it."""

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
        """The next connection: one not `tried` and not resting if there is any, else the one that rests least."""
        with self._lock:
            now = self._clock()
            order = ((self._turn + step) % self._count for step in range(self._count))
            number = min(order, key=lambda n: (n in tried, max(0.0, self._rests_until[n] - now)))
            self._turn = number + 1
            return number

    def failed(self, number: int) -> None:
        """The server behind it was not there, not ready or silent."""
        with self._lock:
            rest_s = min(_LONGEST_REST_S, _FIRST_REST_S * 2.0 ** min(self._failures[number], 10))
            self._failures[number] += 1
            self._rests_until[number] = self._clock() + rest_s

    def worked(self, number: int) -> None:
        """The server behind it answered."""
        if self._failures[number]:
            with self._lock:
                self._failures[number], self._rests_until[number] = 0, 0.0


class Attempts:
    """One call's tries within its deadline.

    Only what a try cannot make worse is tried again: a call without effects where the server was UNAVAILABLE or said
    when to come back, any other call where it never left this machine. A `light` one, which costs a server nothing,
    gives each connection its share of the time, so that one silent server is not all that is asked.
    """

    def __init__(
        self,
        rotation: Rotation,
        *,
        safe: bool,
        retries: int,
        timeout_s: float,
        light: bool = False,
        clock: Clock = time.monotonic,
    ) -> None:
        self._rotation = rotation
        self._safe = safe
        self._light = light and retries > 0
        self._retries = retries
        self._clock = clock
        self._ends = clock() + timeout_s
        self._tried: list[int] = []
        self._waits = 0

    @property
    def remaining_s(self) -> float:
        """Seconds that are left of the call's time."""
        return max(0.0, self._ends - self._clock())

    @property
    def try_s(self) -> float:
        """Seconds for the try that was begun."""
        return self.remaining_s / (1 + self._untried) if self._light else self.remaining_s

    def begin(self) -> int:
        """The connection for the next try."""
        self._tried.append(self._rotation.take(self._tried))
        return self._tried[-1]

    def wait_s(self, error: CnnserveError) -> float | None:
        """Seconds to wait before the next try after this failure; None: it was the last one."""
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
        wait_s = error.retry_after_s if isinstance(error, QueueFullError) else back_off_s(self._waits)
        self._tried.clear()
        # An answer that would come too late is not worth the wait: the caller hears now what is wrong.
        return wait_s if wait_s < self.remaining_s else None

    @property
    def _untried(self) -> int:
        """Connections that were not asked yet."""
        return len(self._rotation) - len(set(self._tried))

    def _may_repeat(self, error: CnnserveError) -> bool:
        if not self._retries:
            return False
        if self._safe:
            return isinstance(error, UnavailableError | QueueFullError)
        return isinstance(error, NotConnected)
