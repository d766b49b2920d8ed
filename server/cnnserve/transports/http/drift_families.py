"""The families about what models answer: probabilities, entropies, predicted classes, and values of inputs."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client.metrics_core import Metric

from cnnserve.batching.drift import ENTROPY_BOUNDS, TOP1_BOUNDS, Buckets, Counts, Moments
from cnnserve.registry.snapshot import Version
from cnnserve.transports.http.families import Family, Labels, buckets, counter, family

# A label of a class may have any length.
_LABEL_LENGTH = 100
_ValueOf = Callable[[Moments], float]


def drift_families(versions: Iterable[tuple[Labels, Version]]) -> Iterator[Metric]:
    """Yields the families. Reads what the versions have counted, which takes some ms, so it runs on a thread."""
    found = [(labels, version, version.drift.read()) for labels, version in versions if version.drift is not None]
    name = "cnnserve_top1_probability"
    rows = ((labels, _pair(counts.top1)) for labels, _, counts in found)
    yield Family("histogram", name, "Largest probability of an output row", buckets(name, _bounds(TOP1_BOUNDS), rows))
    name = "cnnserve_entropy_ratio"
    text = "Entropy of an output row's probabilities, divided by the largest possible entropy"
    rows = ((labels, _pair(counts.entropy)) for labels, _, counts in found if counts.entropy is not None)
    yield Family("histogram", name, text, buckets(name, _bounds(ENTROPY_BOUNDS), rows))
    text = "Number of output rows by most probable class; with more than 1000 classes, the 100 most frequent classes"
    yield counter("cnnserve_predictions", text, _predictions(found))
    inputs = [
        ({**labels, "set": name}, known)
        for labels, version, counts in found
        for name, known in (
            ("live", counts.inputs),
            ("golden", version.self_test.inputs if version.self_test else None),
        )
        if known is not None
    ]
    for name, of in _MOMENTS.items():
        text = f"{of[0]} of the input values: of about the last 1000 samples of requests, and of the golden images"
        yield family("gauge", name, text, [(labels, of[1](known)) for labels, known in inputs])


_MOMENTS: dict[str, tuple[str, _ValueOf]] = {
    "cnnserve_input_mean": ("Mean", lambda known: known.mean),
    "cnnserve_input_deviation": ("Standard deviation", lambda known: known.deviation),
}


def _predictions(found: Iterable[tuple[Labels, Version, Counts]]) -> Iterator[tuple[Labels, int]]:
    for labels, version, counts in found:
        names = version.labels
        for number, count in counts.classes:
            label = names[number][:_LABEL_LENGTH] if number < len(names) else ""
            yield {**labels, "class": str(number), "label": label}, int(count)


def _bounds(bounds: Sequence[float]) -> tuple[str, ...]:
    return (*map(str, bounds), "+Inf")


def _pair(found: Buckets) -> tuple[Sequence[int], float]:
    return found.counts, found.total
