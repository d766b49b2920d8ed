"""Statistics of a loaded version, counted as Triton counts: requests, images, runs and their durations (ns).

Only the event loop uses them, so nothing is locked. If a version is loaded again, it starts at zero, as in Triton.
"""

import time
from asyncio import CancelledError
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from cnnserve.errors import BadAnswer, DeadlineExceeded, InferenceFailed, QueueFull, RunTimedOut, ShuttingDown

_MS = 1_000_000
# Upper bounds of the buckets (ns). LeNet-5 needs about 0.25 ms, ResNet-152 on a busy CPU several seconds.
BOUNDS_NS = tuple(
    int(bound * _MS) for bound in (0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000)
)
# Triton's words. REJECTED: the queue was full, the deadline or the queue timeout passed, or the model was being
# unloaded. CANCELED: the caller was cancelled. BACKEND: the run failed, or its row is bad. OTHER: any other error.
REASONS = ("REJECTED", "CANCELED", "BACKEND", "OTHER")


@dataclass(slots=True)
class Duration:
    """The number of events and the sum of their durations (ns)."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        """Counts one event."""
        self.count += 1
        # A clock that is read on two threads may seem to run backwards by a little.
        if ns > 0:
            self.ns += ns


@dataclass(slots=True)
class Steps:
    """Durations of the three steps of a run: assemble the input, compute, hand out the output."""

    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)

    def add(self, input_ns: int, infer_ns: int, output_ns: int) -> None:
        """Counts one pass through all three steps."""
        self.compute_input.add(input_ns)
        self.compute_infer.add(infer_ns)
        self.compute_output.add(output_ns)


class Histogram:
    """Durations counted by bucket: those up to each bound of `BOUNDS_NS` and above the bound before.

    The last bucket counts those above all bounds.
    """

    __slots__ = ("counts", "total_ns")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_NS) + 1)
        self.total_ns = 0

    def add(self, ns: int) -> None:
        """Counts one duration."""
        # Every request comes here, so this changes two integers and looks up no label.
        self.counts[bisect_left(BOUNDS_NS, ns)] += 1
        self.total_ns += ns


@dataclass(slots=True)
class Latencies:
    """Histograms of answered requests: total time, time in the queue, time to read images, time to compute (ns).

    `preprocessing` counts only requests with images. `compute` is the time to assemble and run the batch.
    """

    request: Histogram = field(default_factory=Histogram)
    queue: Histogram = field(default_factory=Histogram)
    preprocessing: Histogram = field(default_factory=Histogram)
    compute: Histogram = field(default_factory=Histogram)


@dataclass(slots=True)
class Statistics:
    """Requests (`success`, `fail`, `queue`, `steps`), runs (`executions`, `batches` by size) and images (`inferences`).

    `bad_rows`: output rows that were not sent, because they are not finite or no probabilities.

    `failures` are the requests of `fail` by reason. A request that is refused before it asks for places in the queue,
    for example for a wrong shape, is not counted, and neither is a request that fails because its images cannot be
    read. A request with more images than the whole queue holds counts as OTHER.
    """

    inferences: int = 0
    bad_rows: int = 0
    executions: int = 0
    last_inference_ms: int = 0
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    steps: Steps = field(default_factory=Steps)
    batches: defaultdict[int, Steps] = field(default_factory=lambda: defaultdict(Steps))
    failures: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    latencies: Latencies = field(default_factory=Latencies)

    def ran(self, size: int, *, input_ns: int, infer_ns: int, output_ns: int) -> None:
        """Counts one run over `size` images, whatever number of requests they came from. Times are in ns."""
        self.executions += 1
        self.last_inference_ms = time.time_ns() // 1_000_000
        self.batches[size].add(input_ns, infer_ns, output_ns)

    def answered(
        self,
        images: int,
        *,
        total_ns: int,
        queue_ns: int,
        preprocess_ns: int | None,
        steps_ns: tuple[int, int, int],
    ) -> None:
        """Counts one answered request. Times are in ns.

        `steps_ns`: input, run and output of its batch; `preprocess_ns`: None if the request has a tensor, not images.
        """
        input_ns, infer_ns, output_ns = steps_ns
        self.inferences += images
        self.success.add(total_ns)
        self.queue.add(queue_ns)
        self.steps.add(input_ns + (preprocess_ns or 0), infer_ns, output_ns)
        latencies = self.latencies
        latencies.request.add(total_ns)
        latencies.queue.add(queue_ns)
        latencies.compute.add(input_ns + infer_ns)
        if preprocess_ns is not None:
            latencies.preprocessing.add(preprocess_ns)

    @contextmanager
    def counting_failure(self, started_ns: int) -> Iterator[None]:
        """Counts an exception inside, also a cancellation, as one failed request since `started_ns` (monotonic)."""
        try:
            yield
        except BaseException as error:
            self.failed(error, started_ns)
            raise

    def failed(self, error: BaseException, started_ns: int) -> None:
        """Counts a request that has failed since `started_ns` (monotonic)."""
        self.fail.add(time.monotonic_ns() - started_ns)
        self.failures[_reason(error)] += 1


def _reason(error: BaseException) -> str:
    match error:
        case QueueFull() | DeadlineExceeded() | ShuttingDown():
            return "REJECTED"
        case CancelledError():
            return "CANCELED"
        case InferenceFailed() | BadAnswer() | RunTimedOut():
            return "BACKEND"
    return "OTHER"
