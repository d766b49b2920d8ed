"""What watches over the runs of a version: the rules for its rows, and the longest time that a run may take."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from cnnserve.batching.row_check import RowCheck

# If the event loop was blocked until a run was overdue, the outcome of the run may wait to be read.
_CONFIRM_S = 0.05


def _nothing(*_: object) -> None:
    """Does nothing."""


@dataclass(frozen=True)
class Guard:
    """The limits of a version's runs, and who hears of them, on the event loop.

    `check`: the rules for output rows; None: none. `run_limit_s`: the longest time of a run; None: any time.
    `on_suspect` is called after every 100 bad rows in a row, `on_overdue` with the reason after the batcher has given
    up because of a run.
    """

    check: RowCheck | None = None
    run_limit_s: float | None = None
    on_suspect: Callable[[], None] = _nothing
    on_overdue: Callable[[str], None] = _nothing


class RunLimit:
    """Calls `on_overdue` when a run takes longer than `limit_s`. Costs the single run nothing but `begin`.

    `longest_s` returns for how long the oldest run has been under way, None if there is no run.
    """

    def __init__(self, limit_s: float, longest_s: Callable[[], float | None], on_overdue: Callable[[], None]) -> None:
        self._limit_s = limit_s
        self._longest_s = longest_s
        self._on_overdue = on_overdue
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Notes that a run begins."""
        if self._timer is None:
            self._timer = self._loop.call_later(self._limit_s, self._look)

    def cancel(self) -> None:
        """Stops looking until the next run begins."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self, *, confirmed: bool = False) -> None:
        self._timer = None
        longest_s = self._longest_s()
        if longest_s is None:
            return
        if longest_s < self._limit_s:
            self._timer = self._loop.call_later(self._limit_s - longest_s, self._look)
        elif confirmed:
            self._on_overdue()
        else:
            self._timer = self._loop.call_later(_CONFIRM_S, lambda: self._look(confirmed=True))
