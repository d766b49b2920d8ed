"""Runs of small models on the event loop's thread.

The thread of an instance needs more time to wake up and to report than a LeNet-5 needs to compute a batch. So if a
model is that small, the batcher runs its batches itself. A watchdog thread ends a run that takes too long; from then on
the instance's thread runs the model.
"""

import functools
import threading
import time
from collections.abc import Callable, Sequence

from cnnserve.batching.instance import BatchOutcome, Steps
from cnnserve.batching.row_check import RowCheck
from cnnserve.datatypes import Rows

# A run that lasts longer delays all clients of the server. The run may last up to twice this time.
_LIMIT_S = 0.1


class InlineRuns:
    """Runs batches of at most `rows_at_most` rows at once; `terminate` ends a run from another thread."""

    def __init__(self, steps: Steps, terminate: Callable[[], None], rows_at_most: int) -> None:
        self.rows_at_most = rows_at_most
        self.was_ended = False
        self._steps = steps
        self._terminate = terminate
        self._watchdog = _watchdog()

    def run(self, parts: Sequence[Rows], check: RowCheck | None = None) -> BatchOutcome:
        """Runs `parts` as one batch. If the watchdog ended the run, there is an error and `was_ended` is true."""
        self._watchdog.begin(self)
        try:
            return self._steps.outcome(parts, check)
        finally:
            self._watchdog.end()

    def end(self) -> None:
        """Ends the run that goes on. The watchdog calls this."""
        self.was_ended = True
        self._terminate()


class Watchdog:
    """A thread that looks at the run of the event loop every `limit_s` seconds, while there are any runs."""

    def __init__(self, limit_s: float = _LIMIT_S) -> None:
        self._limit_s = limit_s
        # A new object for every run, so that the thread can tell one run from the next.
        self._run: list[InlineRuns] | None = None
        self._active = threading.Event()
        threading.Thread(target=self._watch, name="inline-runs", daemon=True).start()

    def begin(self, runs: InlineRuns) -> None:
        """Notes that a run begins."""
        self._run = [runs]
        if not self._active.is_set():
            self._active.set()

    def end(self) -> None:
        """Notes that the run has ended."""
        self._run = None

    def _watch(self) -> None:
        while True:
            self._active.wait()
            seen = self._run
            if seen is None:
                self._active.clear()
                # A run may have begun between the two lines above.
                if self._run is None:
                    continue
                self._active.set()
            time.sleep(self._limit_s)
            if seen is not None and self._run is seen:
                seen[0].end()


@functools.cache
def _watchdog() -> Watchdog:
    """Returns the process's one watchdog; its thread starts with the first model that needs it."""
    return Watchdog()
