"""What waits for a model, in the order it will leave: by priority, first in first out within one, expired ones last.

Plain data and no clock of its own, so that every order can be tested as a table.
"""

import itertools
from collections import deque
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar


class Queued(Protocol):
    """What the queue sees of an entry: its level, 1 leaves first."""

    @property
    def level(self) -> int: ...  # noqa: D102


T = TypeVar("T", bound=Queued)


class RequestQueue(Generic[T]):
    """Entries by priority level (1 to `levels`), and behind them those that were demoted."""

    def __init__(self, levels: int) -> None:
        self._queues: tuple[deque[T], ...] = tuple(deque() for _ in range(levels + 1))

    def __len__(self) -> int:
        return sum(map(len, self._queues))

    def __bool__(self) -> bool:
        return any(self._queues)

    def __iter__(self) -> Iterator[T]:
        """The entries in leaving order."""
        return itertools.chain.from_iterable(self._queues)

    def put(self, entry: T) -> None:
        """Behind everything of its own level."""
        self._queues[entry.level - 1].append(entry)

    def head(self) -> T:
        """The next to leave. Raises `StopIteration` where nothing waits."""
        return next(iter(self))

    def pop(self) -> T:
        """Takes the next to leave. Raises `IndexError` where nothing waits."""
        queue = next((queue for queue in self._queues if queue), self._queues[-1])
        return queue.popleft()

    def remove(self, entry: T) -> None:
        """Takes one entry out, wherever it stands. Raises `ValueError` where it is not in the queue."""
        queue = self._queues[entry.level - 1]
        (queue if entry in queue else self._queues[-1]).remove(entry)

    def demote(self, entry: T) -> None:
        """Moves an entry behind all others. Raises `ValueError` where it is not in its level's queue."""
        self._queues[entry.level - 1].remove(entry)
        self._queues[-1].append(entry)
