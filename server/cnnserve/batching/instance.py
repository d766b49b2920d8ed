"""One worker thread that runs batches on a session.

The thread knows nothing of requests: it gets arrays, puts them into one batch, runs it and reports through a callback.
An exception fails that one job and the thread goes on with the next.
"""

import logging
import queue
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cnnserve.batching.buckets import padded_size
from cnnserve.datatypes import Rows
from cnnserve.errors import InferenceFailed

_log = logging.getLogger(__name__)


class Runner(Protocol):
    """What an instance needs of a session."""

    def run(self, batch: Rows) -> list[Rows]:
        """All outputs for one batch."""


@dataclass(frozen=True)
class BatchOutcome:
    """What became of one batch: `outputs` hold all its rows in order, or `error` says why there are none.

    `input_ns` of its time went into putting the batch together.
    """

    outputs: list[Rows]
    error: Exception | None
    started_ns: int
    finished_ns: int
    input_ns: int


OnDone = Callable[[BatchOutcome], None]
# Memory to put a batch of so many rows together in; None where there is none for that size.
Buffers = Callable[[int], Rows | None]
_Jobs = queue.SimpleQueue[tuple[Sequence[Rows], OnDone] | None]


class ModelInstance:
    """Runs one batch at a time, off the event loop. `buckets`: pad every batch to one of these sizes.

    Everything of one instance runs on its one thread, the warming too: CUDA handles and graphs belong to a thread.
    """

    def __init__(self, runner: Runner, name: str, buckets: Sequence[int] = (), buffers: Buffers | None = None) -> None:
        self._jobs: _Jobs = queue.SimpleQueue()
        # A daemon: a run that never returns must not keep the process from ending after its grace.
        work = (self._jobs, _Steps(runner, buckets, buffers))
        threading.Thread(target=_work, args=work, name=name, daemon=True).start()
        # One that is dropped without `close`, as by a load that fails, leaves neither thread nor session behind.
        self._end = weakref.finalize(self, self._jobs.put, None)

    def execute(self, parts: Sequence[Rows], on_done: OnDone) -> None:
        """Runs the parts as one batch; `on_done` is called on the instance's thread."""
        self._jobs.put((parts, on_done))

    def run(self, parts: Sequence[Rows]) -> list[Rows]:
        """Runs the parts and blocks until they are done; for loading threads. Raises what the run raised."""
        outcomes: queue.SimpleQueue[BatchOutcome] = queue.SimpleQueue()
        self.execute(parts, outcomes.put)
        outcome = outcomes.get()
        if outcome.error is not None:
            raise outcome.error
        return outcome.outputs

    def close(self) -> None:
        """Ends the thread after what was given to it."""
        self._end()


@dataclass(frozen=True)
class _Steps:
    """The two steps of a run: parts to a batch, batch to outputs."""

    runner: Runner
    buckets: Sequence[int]
    buffers: Buffers | None

    def assemble(self, parts: Sequence[Rows]) -> Rows:
        count = sum(map(len, parts))
        return _assemble(parts, count, padded_size(self.buckets, count), self.buffers)

    def run(self, batch: Rows, count: int) -> list[Rows]:
        outputs = self.runner.run(batch)
        for index, output in enumerate(outputs):
            if output.ndim == 0 or len(output) != len(batch):
                raise InferenceFailed(f"output {index} has shape {output.shape} for a batch of {len(batch)}")
        return outputs if len(batch) == count else [output[:count] for output in outputs]


def _assemble(parts: Sequence[Rows], count: int, size: int, buffers: Buffers | None) -> Rows:
    if size == count and len(parts) == 1:
        return parts[0]
    batch = buffers(size) if buffers else None
    if batch is None:
        batch = np.empty((size, *parts[0].shape[1:]), parts[0].dtype)
    np.concatenate(parts, out=batch[:count])
    # Not the rows of an earlier batch.
    batch[count:] = 0
    return batch


def _work(jobs: _Jobs, steps: _Steps) -> None:
    while (job := jobs.get()) is not None:
        parts, on_done = job
        outcome = _outcome(steps, parts)
        try:
            on_done(outcome)
        except Exception:
            _log.exception("the outcome of a batch could not be reported")
        # Do not keep the last batch alive while waiting for the next one.
        del job, parts, on_done, outcome


def _outcome(steps: _Steps, parts: Sequence[Rows]) -> BatchOutcome:
    started_ns = assembled_ns = time.monotonic_ns()
    outputs: list[Rows] = []
    failure: Exception | None = None
    try:
        batch = steps.assemble(parts)
        assembled_ns = time.monotonic_ns()
        outputs = steps.run(batch, sum(map(len, parts)))
    except Exception as error:
        # With its traceback it would hold this frame, which holds it and the batch, until the collector comes by.
        failure = error.with_traceback(None)
    return BatchOutcome(outputs, failure, started_ns, time.monotonic_ns(), assembled_ns - started_ns)
