"""Families of metrics whose samples are made while they are written, for prometheus_client's writers."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample

Labels = dict[str, str]


class Family(Metric):
    """A family whose samples are made while they are written.

    Lists of samples would be thousands of objects that live at once. With 100 models they cause a full garbage
    collection every few scrapes, which stops the event loop for 60 ms to 90 ms.
    """

    def __init__(self, kind: str, name: str, text: str, samples: Iterator[Sample]) -> None:
        super().__init__(name, text, kind)
        self.samples = samples  # type: ignore[assignment]


def family(kind: str, name: str, text: str, values: Iterable[tuple[Labels, float]]) -> Metric:
    """Returns a family of gauges, or of counters whose name gets no suffix."""
    return Family(kind, name, text, (Sample(name, labels, value) for labels, value in values))


def counter(name: str, text: str, values: Iterable[tuple[Labels, float]]) -> Metric:
    """Returns a family of counters, whose name gets the suffix `_total`."""
    return Family("counter", name, text, (Sample(f"{name}_total", labels, value) for labels, value in values))


def buckets(
    name: str, bounds: Sequence[str], values: Iterable[tuple[Labels, tuple[Sequence[int], float]]]
) -> Iterator[Sample]:
    """Yields the samples of histograms. `values`: labels, the counts of the buckets, and the sum of each histogram."""
    for labels, (counts, total) in values:
        for bound, count in zip(bounds, accumulate(counts), strict=True):
            yield Sample(f"{name}_bucket", {**labels, "le": bound}, count)
        yield Sample(f"{name}_count", labels, sum(counts))
        yield Sample(f"{name}_sum", labels, total)
