"""What answers: the version of a model, on a server or in this process."""

import statistics
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from cnnserve.batching.percentile import percentile
from cnnserve_client.commands import sources
from cnnserve_client.commands.sources import Entry
from cnnserve_client.errors import InvalidInputError
from cnnserve_client.images import read_file
from cnnserve_client.results import ImageResult, Timings

# The latency is that of single images: of this many, or of as many as fit into the time.
_LATENCY_IMAGES = 50
_LATENCY_S = 5.0


@dataclass(frozen=True)
class Subject:
    """The version that is judged. `self_test`: what its self-test found, as text."""

    model: str
    version: str
    labels: tuple[str, ...]
    class_count: int
    self_test: str

    @property
    def name(self) -> str:
        """Model and version as text."""
        return f"{self.model} version {self.version}"

    def label(self, index: int) -> str:
        """Returns the label of a class, or its number if it has none."""
        return (self.labels[index] if index < len(self.labels) else "") or f"class {index}"


@dataclass(frozen=True)
class Latency:
    """Times of requests with a single image in ms, one after the other. Both parts are medians."""

    requests: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    preprocess_ms: float
    compute_ms: float


class Runner(Protocol):
    """A version that can be asked."""

    @property
    def subject(self) -> Subject:
        """The version."""

    def results(self, entries: Iterable[Entry], top_k: int) -> Generator[ImageResult]:
        """Yields the result of each image, in order, with `top_k` classes.

        Only the images that are needed next are in memory. Raises `CnnserveError` if nothing more can be answered.
        """

    def latency(self, entries: Sequence[Entry]) -> Latency | None:
        """Measures the latency with some of the images. None: none of them could be classified."""


def measure(entries: Sequence[Entry], limit: int, ask: Callable[[bytes], Timings | None]) -> Latency | None:
    """Returns the latency of `ask`, which classifies one image and returns None if the image has an error.

    `limit`: the largest file that is sent, in bytes.
    """
    taken_ms: list[float] = []
    timings: list[Timings] = []
    end = time.monotonic() + _LATENCY_S
    # The first request is not counted: it connects, and warms caches.
    for entry in (entries[0], *_spread(entries)):
        with suppress(InvalidInputError):
            data = sources.read(entry, limit, read_file)
            started = time.perf_counter()
            if (found := ask(data)) is not None:
                taken_ms.append((time.perf_counter() - started) * 1e3)
                timings.append(found)
        if time.monotonic() > end:
            break
    if len(taken_ms) < 2:
        return None
    del taken_ms[0], timings[0]
    ordered = sorted(taken_ms)
    return Latency(
        len(ordered),
        percentile(ordered, 50),
        percentile(ordered, 90),
        percentile(ordered, 99),
        statistics.median(one.preprocess_us for one in timings) / 1e3,
        statistics.median(one.compute_us for one in timings) / 1e3,
    )


def _spread(entries: Sequence[Entry]) -> Sequence[Entry]:
    """Returns at most `_LATENCY_IMAGES` entries from all parts of the sequence."""
    count = min(len(entries), _LATENCY_IMAGES)
    return [entries[number * len(entries) // count] for number in range(count)]
