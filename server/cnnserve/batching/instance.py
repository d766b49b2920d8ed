"""An instance: a thread that runs batches on a session, one at a time.

The thread knows nothing of requests. It takes arrays, assembles them into one batch, runs the batch and reports the
outcome through a callback. If a run raises an exception, only its batch fails, and the thread continues with the next.
"""

import logging
import queue
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from cnnserve.batching.buckets import padded_size
from cnnserve.batching.row_check import RowCheck
from cnnserve.datatypes import Rows
from cnnserve.errors import InferenceFailed

_log = logging.getLogger(__name__)


class Runner(Protocol):
    """The part of a session that an instance uses."""

    def run(self, batch: Rows) -> list[Rows]:
        """Returns all outputs for one batch."""


@dataclass(frozen=True)
class BatchOutcome:
    """The outcome of one batch: all its rows of every output, in order, or the `error` because of which there are none.

    Times are in ns (monotonic). Of the time from `started_ns` to `finished_ns`, `input_ns` assembled the batch.
    `bad_rows`: what is wrong with each row that must not leave the server, by its index.
    """

    outputs: list[Rows]
    error: Exception | None
    started_ns: int
    finished_ns: int
    input_ns: int
    bad_rows: Mapping[int, str] = field(default_factory=dict)


OnDone = Callable[[BatchOutcome], None]
# Returns memory for a batch of the given number of rows, or None if there is none for that size.
Buffers = Callable[[int], Rows | None]
_Jobs = queue.SimpleQueue[tuple[Sequence[Rows], OnDone, RowCheck | None] | None]


def _cannot_terminate() -> None:
    """Ends nothing, because the runner has no way to end a run."""


class ModelInstance:
    """Runs one batch at a time, off the event loop. `buckets`: sizes to which batches are padded.

    `terminate` makes the run that goes on fail soon; it may be called on any thread.

    CUDA handles and graphs belong to a thread, so all runs of an instance use its one thread, also the warm-up runs.
    """

    def __init__(
        self,
        runner: Runner,
        name: str,
        buckets: Sequence[int] = (),
        buffers: Buffers | None = None,
        terminate: Callable[[], None] = _cannot_terminate,
    ) -> None:
        self.terminate = terminate
        self._jobs: _Jobs = queue.SimpleQueue()
        # A daemon thread: a run that never returns must not keep the process from exiting after the grace period.
        work = (self._jobs, Steps(runner, buckets, buffers))
        threading.Thread(target=_work, args=work, name=name, daemon=True).start()
        # If an instance is dropped without `close`, for example by a load that fails, its thread and session end too.
        self._end = weakref.finalize(self, self._jobs.put, None)

    def execute(self, parts: Sequence[Rows], on_done: OnDone, check: RowCheck | None = None) -> None:
        """Queues the arrays of rows in `parts` as one batch; the instance's thread calls `on_done` after the run.

        `check` looks at the output rows; None: nothing does.
        """
        self._jobs.put((parts, on_done, check))

    def run(self, parts: Sequence[Rows], limit_s: float | None = None) -> list[Rows]:
        """Runs `parts` as one batch and returns all outputs. Raises what the run raises.

        After `limit_s` (None: never) it ends the run and raises `InferenceFailed`. It blocks until the run has ended,
        so only loading threads call it.
        """
        if not self._end.alive:
            raise InferenceFailed("the instance has ended")
        outcomes: queue.SimpleQueue[BatchOutcome] = queue.SimpleQueue()
        self.execute(parts, outcomes.put)
        try:
            outcome = outcomes.get(timeout=limit_s)
        except queue.Empty:
            self.terminate()
            raise InferenceFailed(f"a run took longer than {limit_s:g} s and was ended") from None
        if outcome.error is not None:
            raise outcome.error
        return outcome.outputs

    def close(self) -> None:
        """Ends the thread after it has run the batches that it was given."""
        self._end()


@dataclass(frozen=True)
class Steps:
    """The two steps of a run: assemble arrays of rows into a batch, compute the outputs of the batch."""

    runner: Runner
    buckets: Sequence[int]
    buffers: Buffers | None

    def assemble(self, parts: Sequence[Rows]) -> Rows:
        """Returns the rows of all parts as one array, padded to a bucket."""
        count = sum(map(len, parts))
        return _assemble(parts, count, padded_size(self.buckets, count), self.buffers)

    def run(self, batch: Rows, count: int) -> list[Rows]:
        """Returns the outputs of the first `count` rows. Raises `InferenceFailed`."""
        outputs = self.runner.run(batch)
        for index, output in enumerate(outputs):
            if output.ndim == 0 or len(output) != len(batch):
                raise InferenceFailed(
                    f"output {index} has shape {output.shape} for a batch of {len(batch)}, expected as many rows; "
                    "export the model with a free batch dimension"
                )
        return outputs if len(batch) == count else [output[:count] for output in outputs]

    def outcome(self, parts: Sequence[Rows], check: RowCheck | None = None) -> BatchOutcome:
        """Runs `parts` as one batch and returns the outcome, or the error of the run. `check` finds the bad rows."""
        started_ns = assembled_ns = time.monotonic_ns()
        outputs: list[Rows] = []
        bad_rows: Mapping[int, str] = {}
        failure: Exception | None = None
        try:
            batch = self.assemble(parts)
            assembled_ns = time.monotonic_ns()
            outputs = self.run(batch, sum(map(len, parts)))
            if check is not None:
                bad_rows = check.bad_rows(outputs)
                if check.drift is not None:
                    check.drift.add(batch[: len(outputs[check.classes])], outputs[check.classes], bad_rows)
        except Exception as error:
            # The traceback refers to this frame, and this frame refers to the exception and the batch. This cycle would
            # keep the batch in memory until the garbage collector runs, so the traceback is removed.
            failure = error.with_traceback(None)
        return BatchOutcome(outputs, failure, started_ns, time.monotonic_ns(), assembled_ns - started_ns, bad_rows)


def _assemble(parts: Sequence[Rows], count: int, size: int, buffers: Buffers | None) -> Rows:
    if size == count and len(parts) == 1:
        return parts[0]
    batch = buffers(size) if buffers else None
    if batch is None:
        batch = np.empty((size, *parts[0].shape[1:]), parts[0].dtype)
    np.concatenate(parts, out=batch[:count])
    # The memory may still hold rows of an earlier batch.
    batch[count:] = 0
    return batch


def _work(jobs: _Jobs, steps: Steps) -> None:
    while (job := jobs.get()) is not None:
        parts, on_done, check = job
        outcome = steps.outcome(parts, check)
        try:
            on_done(outcome)
        except Exception:
            _log.exception("the outcome of a batch could not be reported")
        # The memory of the last batch must be free while the thread waits for the next one.
        del job, parts, on_done, outcome
