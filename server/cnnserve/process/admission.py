"""Limits the memory of all requests in flight together: the bytes that they sent, their rows, images being decoded."""

import contextlib
import threading
from collections import deque
from collections.abc import Iterator

from cnnserve.errors import InvalidInput, QueueFull

# An estimate of when memory is free again: requests hold it for milliseconds up to a second.
_RETRY_MS = 100
# Images that are being decoded may take this part of the limit, so that requests always have the rest.
_DECODING_SHARE = 0.75


class MemoryBudget:
    """Limits the bytes that requests in flight hold. Thread-safe."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        # Every request takes the lock several times. A condition's own `with` costs ten times as much.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        # Number of requests that were refused because of the limit.
        self.refused = 0
        self.held_bytes = 0
        self.decoding_bytes = 0
        # Images that wait for memory begin in the order of their arrival, or small ones would keep a large one out.
        self._waiting: deque[object] = deque()

    @contextlib.contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Holds `size` bytes while inside.

        Raises `QueueFull` at once if they do not fit beside what others hold, and `InvalidInput` if they never will.
        """
        self.take(size)
        try:
            yield
        finally:
            self.give(size)

    @property
    def total_bytes(self) -> int:
        """All bytes that requests and images being decoded hold."""
        return self._total()

    @property
    def waiting(self) -> int:
        """Number of images that wait for memory."""
        return len(self._waiting)

    def has_room(self, size: int) -> bool:
        """Returns whether `size` more bytes fit into the limit."""
        return self.held_bytes + self.decoding_bytes + size <= self.limit_bytes

    def add(self, size: int) -> None:
        """Holds `size` bytes that exist already, also beyond the limit, until `give`."""
        with self._lock:
            self.held_bytes += size

    def take(self, size: int) -> None:
        """Holds `size` bytes until `give`. Otherwise as `hold`."""
        with self._lock:
            if size > self.limit_bytes:
                self.refused += 1
                raise InvalidInput(
                    f"the request needs {_mib(size)} MiB of memory, all requests together may hold "
                    f"{_mib(self.limit_bytes)} MiB; send fewer rows, or start the server with a larger "
                    "--max-pending-mib"
                )
            if not self.has_room(size):
                self.refused += 1
                raise QueueFull(
                    f"the server's memory for requests is full: requests in flight hold {self._total() >> 20} MiB, "
                    f"this request needs {size >> 20} MiB, and the limit is {self.limit_bytes >> 20} MiB "
                    "(max_pending_mib); try again later",
                    _RETRY_MS,
                )
            self.held_bytes += size

    def give(self, size: int) -> None:
        """Gives back what `take` has taken."""
        with self._lock:
            self.held_bytes -= size
            if self._waiting:
                self._changed.notify_all()

    @contextlib.contextmanager
    def decoding(self, size: int) -> Iterator[None]:
        """Holds `size` bytes while inside. Blocks until they fit into the limit, so only decoding threads call it.

        Raises `InvalidInput` if they would leave too little to other requests. An image waits for those that are being
        decoded, and for nothing else: the request that it belongs to has its place already.
        """
        most = int(self.limit_bytes * _DECODING_SHARE)
        if size > most:
            raise InvalidInput(
                f"decoding the image needs {_mib(size)} MiB of memory, the limit for images is {_mib(most)} MiB, three "
                "quarters of max_pending_mib; send a smaller image, or start the server with a larger --max-pending-mib"
            )
        ticket = object()
        with self._lock:
            self._waiting.append(ticket)
            self._changed.wait_for(lambda: self._waiting[0] is ticket and self._may_decode(size))
            self._waiting.popleft()
            self.decoding_bytes += size
            # The next one may fit, too.
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._lock:
                self.decoding_bytes -= size
                self._changed.notify_all()

    def _may_decode(self, size: int) -> bool:
        if not self.decoding_bytes:
            return True
        return self.has_room(size) and self.decoding_bytes + size <= self.limit_bytes * _DECODING_SHARE

    def _total(self) -> int:
        return self.held_bytes + self.decoding_bytes


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f}"
