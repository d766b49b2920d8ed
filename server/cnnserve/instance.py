"""One worker thread that runs batches on a session.

The thread knows nothing of requests: it gets arrays, puts them into one batch, runs it and reports through a callback.
An exception fails that one job and the thread goes on with the next.
"""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cnnserve.errors import InferenceFailed

Rows = NDArray[Any]


class Runner(Protocol):
    """What an instance needs of a session."""

    def run(self, batch: Rows) -> list[Rows]:
        """All outputs for one batch."""


@dataclass(frozen=True)
class BatchOutcome:
    """What became of one batch: `outputs` hold all its rows in order, or `error` says why there are none."""

    outputs: list[Rows]
    error: Exception | None
    started_ns: int
    finished_ns: int


OnDone = Callable[[BatchOutcome], None]


class ModelInstance:
    """Runs one batch at a time, off the event loop. `fixed_batch`: pad every batch to this many rows."""

    def __init__(self, runner: Runner, name: str, fixed_batch: int | None = None) -> None:
        self._runner = runner
        self._fixed_batch = fixed_batch
        self._jobs: queue.SimpleQueue[tuple[Sequence[Rows], OnDone] | None] = queue.SimpleQueue()
        # A daemon: a run that never returns must not keep the process from ending after its grace.
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def execute(self, parts: Sequence[Rows], on_done: OnDone) -> None:
        """Runs the parts as one batch; `on_done` is called on the instance's thread."""
        self._jobs.put((parts, on_done))

    def close(self) -> None:
        """Ends the thread after what was given to it."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            parts, on_done = job
            on_done(self._run(parts))
            # Do not keep the last batch alive while waiting for the next one.
            del job, parts, on_done

    def _run(self, parts: Sequence[Rows]) -> BatchOutcome:
        started_ns = time.monotonic_ns()
        outputs: list[Rows] = []
        failure: Exception | None = None
        try:
            outputs = run_rows(self._runner, parts, self._fixed_batch)
        except Exception as error:
            failure = error
        return BatchOutcome(outputs, failure, started_ns, time.monotonic_ns())


def run_rows(runner: Runner, parts: Sequence[Rows], fixed_batch: int | None = None) -> list[Rows]:
    """One run over all rows of all parts; every output has as many rows. Raises `InferenceFailed`."""
    count = sum(len(part) for part in parts)
    outputs = runner.run(_assemble(parts, count, fixed_batch))
    expected = max(count, fixed_batch or 0)
    for index, output in enumerate(outputs):
        if output.ndim == 0 or len(output) != expected:
            raise InferenceFailed(f"output {index} has shape {output.shape} for a batch of {expected}")
    return outputs if expected == count else [output[:count] for output in outputs]


def _assemble(parts: Sequence[Rows], count: int, fixed_batch: int | None) -> Rows:
    size = fixed_batch or count
    if size == count:
        return parts[0] if len(parts) == 1 else np.concatenate(parts)
    batch = np.zeros((size, *parts[0].shape[1:]), parts[0].dtype)
    np.concatenate(parts, out=batch[:count])
    return batch
