"""What each client uses of the server at the moment, and its limits."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cnnserve.errors import ClientLimitReached, InvalidInput

# If there are more clients, those who use nothing are forgotten.
_MOST_ACCOUNTS = 10_000
# An estimate of when images of the same client are done.
_IMAGES_RETRY_MS = 100


@dataclass(frozen=True)
class ClientLimits:
    """The limits of each client; 0: none."""

    requests_per_second: float = 0.0
    images_in_flight: int = 0

    @property
    def are_set(self) -> bool:
        """Whether there is any limit."""
        return bool(self.requests_per_second or self.images_in_flight)


class Account:
    """One client. `who`: the name of its token or certificate, "" if it has none. Use on one event loop."""

    def __init__(self, who: str, limits: ClientLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self.who = who
        self._limits = limits
        self._clock = clock
        # As many requests as come in one second may come at once.
        self._most = max(1.0, limits.requests_per_second)
        self._left = self._most
        self._since = clock()
        self._images = 0

    @property
    def limits_images(self) -> bool:
        """Whether `images` may refuse a request."""
        return self._limits.images_in_flight > 0

    @property
    def is_idle(self) -> bool:
        """Whether a new account would be the same."""
        return not self._images and self._refilled() >= self._most

    def request(self) -> None:
        """Counts a request. Raises `ClientLimitReached` if there are too many in this second."""
        wait_s = self._take()
        if wait_s:
            raise ClientLimitReached(
                f"the client has sent more than {self._limits.requests_per_second:g} requests per second "
                "(client_requests_per_second); send fewer",
                max(1, int(wait_s * 1000)),
            )

    async def message(self) -> None:
        """Waits until the stream may have its next message read: flow control holds the bytes at the client."""
        while wait_s := self._take():  # noqa: ASYNC110 - other calls of this client may be quicker
            await asyncio.sleep(wait_s)

    @contextlib.contextmanager
    def images(self, count: int) -> Iterator[None]:
        """Counts images while inside. Raises `ClientLimitReached`, or `InvalidInput` if so many can never be."""
        most = self._limits.images_in_flight
        if most and count > most:
            raise InvalidInput(
                f"the request has {count} images, and a client may have {most} in flight (client_images_in_flight); "
                "send fewer"
            )
        if most and self._images + count > most:
            raise ClientLimitReached(
                f"the client has {self._images} of at most {most} images in flight (client_images_in_flight), and this "
                f"request has {count}; wait for responses",
                _IMAGES_RETRY_MS,
            )
        self._images += count
        try:
            yield
        finally:
            self._images -= count

    def _take(self) -> float:
        """Takes one request from what is left; returns 0, or the seconds until there is one again."""
        if not self._limits.requests_per_second:
            return 0.0
        self._left, self._since = self._refilled(), self._clock()
        if self._left < 1:
            return (1 - self._left) / self._limits.requests_per_second
        self._left -= 1
        return 0.0

    def _refilled(self) -> float:
        return min(self._most, self._left + (self._clock() - self._since) * self._limits.requests_per_second)


class Accounts:
    """The accounts of all clients by their names or addresses. Use on one event loop."""

    def __init__(self, limits: ClientLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._by_key: dict[str, Account] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def of(self, key: str, who: str) -> Account:
        """Returns the account of a client."""
        account = self._by_key.get(key)
        if account is None:
            if len(self._by_key) >= _MOST_ACCOUNTS:
                self._forget()
            account = self._by_key[key] = Account(who, self._limits, self._clock)
        return account

    def _forget(self) -> None:
        self._by_key = {key: account for key, account in self._by_key.items() if not account.is_idle}
        if len(self._by_key) >= _MOST_ACCOUNTS:
            # So many clients at once are not clients.
            self._by_key.clear()
