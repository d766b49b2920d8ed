"""Watches the process's resident memory for bytes that nobody has counted: those that a library holds for a client.

The size of an idle server is learned: the least that was seen in the last minute, less what requests held then. Loads
and unloads of models change the size, so it is learned anew after each.
"""

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

from cnnserve.process import heap
from cnnserve.process.admission import MemoryBudget
from cnnserve.process.threads import on_thread

_STATM = Path("/proc/self/statm")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_WINDOW_S = 30.0
# Beyond the budget: copies that no budget counts, and fragmentation.
_SLACK_BYTES = 64 * 2**20
# Freed memory that the C library keeps is returned if there is this much of it, at most once in this time.
_WORTH_BYTES = 16 * 2**20
_TRIM_S = 0.05


def resident_bytes() -> int:
    """Returns the resident memory of this process; 0 if the system does not say."""
    try:
        return int(_STATM.read_text().split()[1]) * _PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return 0


class MemoryPressure:
    """Whether the process has grown beyond what requests may hold. Use on one event loop."""

    def __init__(
        self,
        budget: MemoryBudget,
        resident: Callable[[], int] = resident_bytes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._budget = budget
        self._resident = resident
        self._clock = clock
        self._least = [resident(), resident()]
        self._window_ends = clock() + _WINDOW_S
        self._resident_bytes = 0
        self._trimmed = 0.0
        self.is_high = False

    @property
    def idle_bytes(self) -> int:
        """The size of the process without requests, as far as it is known."""
        return min(self._least)

    def learn(self) -> None:
        """Forgets the idle size and learns it anew. Call it after models were loaded or unloaded."""
        own = self._resident() - self._budget.total_bytes
        self._least = [own, own]
        self._window_ends = self._clock() + _WINDOW_S

    def look(self) -> bool:
        """Measures, and returns whether memory exceeds the budget."""
        resident = self._resident_bytes = self._resident()
        own = resident - self._budget.total_bytes
        now = self._clock()
        if now >= self._window_ends:
            self._least = [own, self._least[0]]
            self._window_ends = now + _WINDOW_S
        self._least[0] = min(self._least[0], own)
        self.is_high = resident - self.idle_bytes > self._budget.limit_bytes + _SLACK_BYTES
        return self.is_high

    def leaves_room(self, size: int) -> bool:
        """Measures, and returns whether `size` more bytes stay within the budget by what the process really takes."""
        return self._resident() - self.idle_bytes + size <= self._budget.limit_bytes

    def trim(self) -> "asyncio.Future[None]":
        """Returns freed memory to the system, on a thread."""
        self._trimmed = self._clock()
        return on_thread(heap.trim, "trim")

    def trim_if_worth_it(self, *, is_quiet: bool) -> None:
        """Returns freed memory to the system, on a thread, if the last look found much that nobody holds.

        While large messages come (not `is_quiet`), they would soon ask for the memory again, which costs a third
        of their CPU time. So it stays until it is an eighth of the budget.
        """
        kept = self._resident_bytes - self.idle_bytes - self._budget.total_bytes
        worth_bytes = _WORTH_BYTES if is_quiet else max(_WORTH_BYTES, self._budget.limit_bytes // 8)
        if kept > worth_bytes and self._clock() - self._trimmed >= _TRIM_S:
            self.trim()
