"""How much memory all requests at work may hold together: what they sent, their rows, and what is being decoded."""

import contextlib
import threading
from collections.abc import Iterator

from cnnserve.errors import QueueFull

# A guess at when some of it is free again; requests hold it for milliseconds to a second.
_RETRY_MS = 100


class MemoryBudget:
    """Bytes that requests at work may hold. Thread-safe."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._changed = threading.Condition(threading.Lock())
        # Requests that were refused for want of it.
        self.refused = 0
        self.held_bytes = 0
        self.decoding_bytes = 0

    @contextlib.contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Holds `size` bytes while inside. Raises `QueueFull` at once where they are not left.

        A request that is alone is let in whatever its size: the message limit has bounded it already.
        """
        with self._changed:
            if self.held_bytes and not self._fits(size):
                self.refused += 1
                raise QueueFull(
                    f"requests at work hold {self._total() >> 20} MiB, this one needs {size >> 20} MiB more and "
                    f"{self.limit_bytes >> 20} MiB are the server's limit (max_pending_mib)",
                    _RETRY_MS,
                )
            self.held_bytes += size
        try:
            yield
        finally:
            with self._changed:
                self.held_bytes -= size
                self._changed.notify_all()

    @contextlib.contextmanager
    def decoding(self, size: int) -> Iterator[None]:
        """Holds `size` bytes while inside; blocks until they are left. For decoding threads.

        An image that is decoded alone is let in whatever its size: the pixel limit has bounded it already.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self.decoding_bytes or self._fits(size))
            self.decoding_bytes += size
        try:
            yield
        finally:
            with self._changed:
                self.decoding_bytes -= size
                self._changed.notify_all()

    def _total(self) -> int:
        return self.held_bytes + self.decoding_bytes

    def _fits(self, size: int) -> bool:
        return self._total() + size <= self.limit_bytes
