"""How much memory all waiting and running requests may hold together, taken before any of them is decoded."""

import contextlib
from collections.abc import Iterator

from cnnserve.errors import QueueFull

# A guess at when some of it is free again; requests hold it for milliseconds to a second.
_RETRY_MS = 100


class MemoryBudget:
    """Bytes that requests at work may hold. Use on one event loop only."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self.held_bytes = 0

    @contextlib.contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Holds `size` bytes while inside. Raises `QueueFull` at once where they are not left.

        A request that is alone is let in whatever its size: the message limit has bounded it already.
        """
        if self.held_bytes and self.held_bytes + size > self._limit:
            raise QueueFull(
                f"requests at work hold {self.held_bytes >> 20} MiB, this one needs {size >> 20} MiB more and "
                f"{self._limit >> 20} MiB are the server's limit (max_pending_mib)",
                _RETRY_MS,
            )
        self.held_bytes += size
        try:
            yield
        finally:
            self.held_bytes -= size
