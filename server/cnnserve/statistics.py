"""What a loaded version has done, counted as Triton counts: requests, images, runs and where their time went (ns).

Kept on the event loop, so nothing is locked. A version that is loaded again starts at zero, as in Triton.
"""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


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


@dataclass(slots=True)
class Statistics:
    """Requests (`success`, `fail`, `queue`, `steps`), runs (`executions`, `batches` by size) and images (`inferences`).

    A request that was refused for what it brought is in none of them: it never asked for a run.
    """

    inferences: int = 0
    executions: int = 0
    last_inference_ms: int = 0
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    steps: Steps = field(default_factory=Steps)
    batches: defaultdict[int, Steps] = field(default_factory=lambda: defaultdict(Steps))

    def ran(self, size: int, *, input_ns: int, infer_ns: int, output_ns: int) -> None:
        """One run over `size` images, however many requests they came from."""
        self.executions += 1
        self.last_inference_ms = time.time_ns() // 1_000_000
        self.batches[size].add(input_ns, infer_ns, output_ns)

    def answered(self, images: int, *, total_ns: int, queue_ns: int, steps_ns: tuple[int, int, int]) -> None:
        """One request that got its answer; `steps_ns`: input, run and output of the batch it was in."""
        self.inferences += images
        self.success.add(total_ns)
        self.queue.add(queue_ns)
        self.steps.add(*steps_ns)

    @contextmanager
    def counting_failure(self, started_ns: int) -> Iterator[None]:
        """Counts what is raised inside, a cancellation too, as one failed request since `started_ns` (monotonic)."""
        try:
            yield
        except BaseException:
            self.fail.add(time.monotonic_ns() - started_ns)
            raise
