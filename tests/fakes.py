"""The two things tests may fake: the clock and the session."""

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray


class FakeClock:
    """A monotonic clock in ns that moves only when a test moves it."""

    def __init__(self) -> None:
        self.now_ns = 1_000_000_000

    def __call__(self) -> int:
        return self.now_ns

    def advance_us(self, microseconds: int) -> None:
        self.now_ns += microseconds * 1000


class FakeSession:
    """Returns the sum of each row. A test can hold its runs and make them fail. `sizes` has the size of every run."""

    def __init__(self, *, held: bool = False) -> None:
        self.sizes: list[int] = []
        self.failures: list[Exception] = []
        self.entered = threading.Semaphore(0)
        self._gate = threading.Semaphore(0) if held else None

    def run(self, batch: NDArray[Any]) -> list[NDArray[Any]]:
        self.sizes.append(len(batch))
        self.entered.release()
        if self._gate is not None:
            self._gate.acquire()
        if self.failures:
            raise self.failures.pop(0)
        return [batch.reshape(len(batch), -1).sum(axis=1, keepdims=True, dtype=np.float64)]

    def let(self, runs: int = 1) -> None:
        """Lets `runs` held runs finish."""
        assert self._gate is not None
        self._gate.release(runs)
