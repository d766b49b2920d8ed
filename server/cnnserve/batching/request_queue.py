"""The queue of one model: requests by priority, first in first out within a priority, then demoted ones, then the last.

The queue is plain data and uses no clock, so tests can state every order as a table.
"""

import itertools
from collections import deque
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar


class Queued(Protocol):
    """A request as the queue sees it: its priority level. Level 1 leaves first."""

    @property
    def level(self) -> int: ...  # noqa: D102


T = TypeVar("T", bound=Queued)


class RequestQueue(Generic[T]):
    """Requests by priority level (1 to `levels`), behind them the demoted requests, and behind those the last."""

    def __init__(self, levels: int) -> None:
        self._queues: tuple[deque[T], ...] = tuple(deque() for _ in range(levels + 2))

    def __len__(self) -> int:
        return sum(map(len, self._queues))

    def __bool__(self) -> bool:
        return any(self._queues)

    def __iter__(self) -> Iterator[T]:
        """Iterates over the requests in leaving order."""
        return itertools.chain.from_iterable(self._queues)

    def put(self, entry: T) -> None:
        """Adds a request behind all others of its level."""
        self._queues[entry.level - 1].append(entry)

    def head(self) -> T:
        """Returns the request that leaves next. Raises `StopIteration` if the queue is empty."""
        return next(iter(self))

    def ahead(self, level: int) -> Iterator[T]:
        """Iterates over the requests that would leave before one of `level` that arrives now."""
        return itertools.chain.from_iterable(self._queues[:level])

    def pop(self) -> T:
        """Removes and returns the request that leaves next. Raises `IndexError` if the queue is empty."""
        queue = next((queue for queue in self._queues if queue), self._queues[-1])
        return queue.popleft()

    def remove(self, entry: T) -> None:
        """Removes one request, wherever it stands. Raises `ValueError` if it is not in the queue."""
        own, *_, demoted, last = self._queues[entry.level - 1 :]
        next((queue for queue in (own, last) if entry in queue), demoted).remove(entry)

    def demote(self, entry: T) -> None:
        """Moves a request behind all levels. Raises `ValueError` if it is not in the queue of its level."""
        self._queues[entry.level - 1].remove(entry)
        self._queues[-2].append(entry)

    def put_last(self, entry: T) -> None:
        """Adds a request behind all others, also those that are demoted later."""
        self._queues[-1].append(entry)
