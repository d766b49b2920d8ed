"""A snapshot of the server in Prometheus' text format, or in OpenMetrics. The only importer of prometheus_client.

`nv_` names and what they count are Triton's, so its dashboards and alerts work; what is ours begins with `cnnserve_`.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TypeVar

from prometheus_client import ProcessCollector
from prometheus_client.exposition import generate_latest as plain_text
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.openmetrics.exposition import ALLOWUTF8
from prometheus_client.openmetrics.exposition import generate_latest as open_metrics_text
from prometheus_client.samples import Sample

from cnnserve.batching.statistics import BOUNDS_NS
from cnnserve.registry.lifecycle import State
from cnnserve.registry.snapshot import Distribution, Snapshot, Version, Work

_Labels = dict[str, str]
_T = TypeVar("_T")

_NS_PER_S = 1e9
_FAILURES = "nv_inference_request_failure"
# Sums of time in microseconds, as Triton counts them: of requests that were answered.
_TRITON_COUNTERS: Mapping[str, tuple[str, Callable[[Work], int]]] = {
    "nv_inference_request_success": ("Requests that were answered", lambda work: work.success),
    "nv_inference_count": ("Images of answered requests", lambda work: work.inferences),
    "nv_inference_exec_count": ("Runs of the model, however many requests they merged", lambda work: work.executions),
    "nv_inference_request_duration_us": (
        "Time from a request's arrival at the model to its answer",
        lambda work: work.request_ns // 1000,
    ),
    "nv_inference_queue_duration_us": ("Time of requests in the queue", lambda work: work.queue_ns // 1000),
    "nv_inference_compute_input_duration_us": (
        "Time of requests in which images were read and the batch was put together",
        lambda work: work.compute_input_ns // 1000,
    ),
    "nv_inference_compute_infer_duration_us": (
        "Time of requests in which their batch ran",
        lambda work: work.compute_infer_ns // 1000,
    ),
    "nv_inference_compute_output_duration_us": (
        "Time of requests in which the rows were handed out",
        lambda work: work.compute_output_ns // 1000,
    ),
}
_LATENCIES: Mapping[str, tuple[str, Callable[[Work], Distribution]]] = {
    "cnnserve_request_duration_seconds": (
        "Time from a request's arrival at the model to its answer",
        lambda work: work.request,
    ),
    "cnnserve_queue_duration_seconds": ("Time of a request in the queue", lambda work: work.queue),
    "cnnserve_preprocessing_duration_seconds": (
        "Time in which a request's images were decoded, resized and cropped",
        lambda work: work.preprocessing,
    ),
    "cnnserve_compute_duration_seconds": ("Time in which a request's batch ran", lambda work: work.compute),
}
_LATENCY_BOUNDS = (*(str(bound / _NS_PER_S) for bound in BOUNDS_NS), "+Inf")
_BATCH_SIZES = tuple(2**power for power in range(11))
_BATCH_BOUNDS = (*(str(float(size)) for size in _BATCH_SIZES), "+Inf")


def write(snapshot: Snapshot, *, open_metrics: bool = False) -> bytes:
    """A snapshot and the process's own figures as text. On any thread."""
    families = _Families(snapshot)
    if open_metrics:
        # No name here needs escaping, and this scheme finds that out the quickest.
        text: bytes = open_metrics_text(families, escaping=ALLOWUTF8)  # type: ignore[no-untyped-call]
        return text
    text = plain_text(families)
    # The library adds _total to the name of every counter, Triton to none. OpenMetrics demands it, so Triton's are of
    # unknown type there.
    for name in (*_TRITON_COUNTERS, _FAILURES):
        text = text.replace(b"# TYPE %s untyped" % name.encode(), b"# TYPE %s counter" % name.encode(), 1)
    return text


class _Families:
    """A collector, as prometheus_client's writers want one, of one snapshot."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._versions = [(_labels(version), version) for version in snapshot.versions]
        self._worked = [(labels, version.work) for labels, version in self._versions if version.work is not None]

    def collect(self) -> Iterator[Metric]:
        """Every family once, also where it has no sample."""
        yield from self._triton()
        yield from self._models()
        yield from self._histograms()
        yield from self._server()
        yield from ProcessCollector(registry=None).collect()

    def _triton(self) -> Iterator[Metric]:
        for name, (text, count_of) in _TRITON_COUNTERS.items():
            yield _family("unknown", name, text, self._each(count_of))
        failures = (
            ({**labels, "reason": reason}, count)
            for labels, work in self._worked
            for reason, count in work.failures.items()
        )
        yield _family("unknown", _FAILURES, "Requests that failed, by reason", failures)
        waiting = self._each(lambda work: work.waiting)
        yield _family("gauge", "nv_inference_pending_request_count", "Requests in the queue", waiting)
        loads = ((labels, version.load_s) for labels, version in self._versions if version.load_s is not None)
        yield _family("gauge", "nv_model_load_duration_secs", "Time from files to READY", loads)

    def _models(self) -> Iterator[Metric]:
        states = (
            ({**labels, "state": state.value}, version.state is state)
            for labels, version in self._versions
            for state in State
        )
        yield _family("gauge", "cnnserve_model_state", "1 for the state a version is in, 0 for the others", states)
        nodes = (
            ({**labels, "provider": provider}, count)
            for labels, version in self._versions
            for provider, count in version.placement.items()
        )
        yield _family("gauge", "cnnserve_model_nodes", "Nodes of the graph on each execution provider", nodes)

    def _histograms(self) -> Iterator[Metric]:
        for name, (text, latency_of) in _LATENCIES.items():
            values = ((labels, _in_seconds(latency)) for labels, latency in self._each(latency_of))
            yield _Family("histogram", name, text, _buckets(name, _LATENCY_BOUNDS, values))
        name = "cnnserve_batch_size"
        sizes = self._each(lambda work: _by_size(work.batches))
        yield _Family("histogram", name, "Images of a run", _buckets(name, _BATCH_BOUNDS, sizes))

    def _server(self) -> Iterator[Metric]:
        now = self._snapshot
        text = "What requests at work and images being decoded hold"
        held = [({"by": "requests"}, now.held_bytes), ({"by": "decoding"}, now.decoding_bytes)]
        yield _family("gauge", "cnnserve_memory_held_bytes", text, held)
        yield GaugeMetricFamily("cnnserve_memory_limit_bytes", "What they may hold together", now.limit_bytes)
        text = "Requests refused because that was not left"
        yield CounterMetricFamily("cnnserve_memory_refused_requests", text, now.refused)
        info = {"version": now.server_version, "onnxruntime": now.runtime_version}
        yield InfoMetricFamily("cnnserve_server", "What serves", info)

    def _each(self, value_of: Callable[[Work], _T]) -> Iterator[tuple[_Labels, _T]]:
        return ((labels, value_of(work)) for labels, work in self._worked)


class _Family(Metric):
    """A family whose samples are made while they are written.

    Lists of them are thousands of objects that live at once, which bring on a full garbage collection every few
    scrapes: 60 to 90 ms without the event loop, with 100 models.
    """

    def __init__(self, kind: str, name: str, text: str, samples: Iterator[Sample]) -> None:
        super().__init__(name, text, kind)
        self.samples = samples  # type: ignore[assignment]


def _family(kind: str, name: str, text: str, values: Iterable[tuple[_Labels, float]]) -> Metric:
    """Gauges, and counters whose name is taken as it is."""
    return _Family(kind, name, text, (Sample(name, labels, value) for labels, value in values))


def _buckets(
    name: str, bounds: Sequence[str], values: Iterable[tuple[_Labels, tuple[Sequence[int], float]]]
) -> Iterator[Sample]:
    """The samples of histograms, from how many fell between two bounds each, and their sum."""
    for labels, (counts, total) in values:
        for bound, count in zip(bounds, accumulate(counts), strict=True):
            yield Sample(f"{name}_bucket", {**labels, "le": bound}, count)
        yield Sample(f"{name}_count", labels, sum(counts))
        yield Sample(f"{name}_sum", labels, total)


def _in_seconds(latency: Distribution) -> tuple[Sequence[int], float]:
    return latency.counts, latency.total_ns / _NS_PER_S


def _by_size(batches: Mapping[int, int]) -> tuple[list[int], int]:
    """Runs between two bounds of batch sizes each, and the images of all."""
    counts = [0] * len(_BATCH_BOUNDS)
    for size, runs in batches.items():
        counts[bisect_left(_BATCH_SIZES, size)] += runs
    return counts, sum(size * runs for size, runs in batches.items())


def _labels(version: Version) -> _Labels:
    return {"model": version.model, "version": version.version}
