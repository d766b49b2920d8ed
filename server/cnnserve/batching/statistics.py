"""What a loaded version has done, counted as Triton counts: requests, images, runs and where their time went (ns).

Kept on the event loop, so nothing is locked. A version that is loaded again starts at zero, as in Triton.
"""

import time
from asyncio import CancelledError
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from cnnserve.errors import DeadlineExceeded, InferenceFailed, QueueFull, ShuttingDown

_MS = 1_000_000
# Upper bounds (ns). A LeNet-5 takes a quarter of a millisecond, a ResNet-152 on a busy CPU seconds.
BOUNDS_NS = tuple(
    int(bound * _MS) for bound in (0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000)
)
# Triton's words: the queue refused it or its time there ran out; its caller left; its run failed; anything else.
REASONS = ("REJECTED", "CANCELED", "BACKEND", "OTHER")


@dataclass(slots=True)
class Duration:
    """How often, and how long together."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        """Once more. A clock that was read on two threads may seem to run backwards by a little."""
        self.count += 1
        self.ns += max(0, ns)


@dataclass(slots=True)
class Steps:
    """The three steps of a run: putting its input together, the run itself, handing out its output."""

    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)

    def add(self, input_ns: int, infer_ns: int, output_ns: int) -> None:
        """One pass through all three."""
        self.compute_input.add(input_ns)
        self.compute_infer.add(infer_ns)
        self.compute_output.add(output_ns)


class Histogram:
    """How many durations end at or below each of `BOUNDS_NS` and above the one before; those above all come last."""

    __slots__ = ("counts", "total_ns")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_NS) + 1)
        self.total_ns = 0

    def add(self, ns: int) -> None:
        """Once more. Two integers change, nothing is looked up by name: it is on every request's way."""
        self.counts[bisect_left(BOUNDS_NS, ns)] += 1
        self.total_ns += ns


@dataclass(slots=True)
class Latencies:
    """Of answered requests: all of it, in the queue, reading images (where there were any), the run of their batch."""

    request: Histogram = field(default_factory=Histogram)
    queue: Histogram = field(default_factory=Histogram)
    preprocessing: Histogram = field(default_factory=Histogram)
    compute: Histogram = field(default_factory=Histogram)


@dataclass(slots=True)
class Statistics:
    """Requests (`success`, `fail`, `queue`, `steps`), runs (`executions`, `batches` by size) and images (`inferences`).

    `failures` are those of `fail` by reason. A request that was refused for what it brought is in none of them: it
    never asked for a run.
    """

    inferences: int = 0
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
        """One run over `size` images, however many requests they came from."""
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
        """One request that got its answer.

        `steps_ns`: input, run and output of the batch it was in; `preprocess_ns`: None where it brought no images.
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
        """Counts what is raised inside, a cancellation too, as one failed request since `started_ns` (monotonic)."""
        try:
            yield
        except BaseException as error:
            self.fail.add(time.monotonic_ns() - started_ns)
            self.failures[_reason(error)] += 1
            raise


def _reason(error: BaseException) -> str:
    match error:
        case QueueFull() | DeadlineExceeded() | ShuttingDown():
            return "REJECTED"
        case CancelledError():
            return "CANCELED"
        case InferenceFailed():
            return "BACKEND"
    return "OTHER"
