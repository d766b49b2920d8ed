"""Writes a snapshot of the server in Prometheus' text format, or in OpenMetrics.

Metrics that begin with `nv_` have the names and the meaning of Triton's metrics, so that Triton's dashboards and alerts
work. All other metrics begin with `cnnserve_`. No other module imports prometheus_client.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from prometheus_client import ProcessCollector
from prometheus_client.exposition import generate_latest as plain_text
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.openmetrics.exposition import ALLOWUTF8
from prometheus_client.openmetrics.exposition import generate_latest as open_metrics_text

from cnnserve.batching.statistics import BOUNDS_NS
from cnnserve.registry.lifecycle import State
from cnnserve.registry.snapshot import Distribution, Snapshot, Version, Work
from cnnserve.runtime import gpus
from cnnserve.runtime.gpus import Gpu
from cnnserve.transports.http.drift_families import drift_families
from cnnserve.transports.http.families import Family, Labels, buckets, counter, family

_T = TypeVar("_T")

_NS_PER_S = 1e9
_FAILURES = "nv_inference_request_failure"
# Triton sums times over successful requests only. A run counts once for each of its requests.
_TRITON_COUNTERS: Mapping[str, tuple[str, Callable[[Work], int]]] = {
    "nv_inference_request_success": ("Number of successful requests", lambda work: work.success),
    "nv_inference_count": ("Number of images (rows) of successful requests", lambda work: work.inferences),
    "nv_inference_exec_count": (
        "Number of runs of the model, each for one or more requests",
        lambda work: work.executions,
    ),
    "nv_inference_request_duration_us": (
        "Sum of the times of successful requests from arrival at the model to response, in microseconds",
        lambda work: work.request_ns // 1000,
    ),
    "nv_inference_queue_duration_us": (
        "Sum of the times of successful requests in the queue, in microseconds",
        lambda work: work.queue_ns // 1000,
    ),
    "nv_inference_compute_input_duration_us": (
        "Sum of the times to preprocess images and to assemble batches for successful requests, in microseconds",
        lambda work: work.compute_input_ns // 1000,
    ),
    "nv_inference_compute_infer_duration_us": (
        "Sum of the times to run batches for successful requests, in microseconds",
        lambda work: work.compute_infer_ns // 1000,
    ),
    "nv_inference_compute_output_duration_us": (
        "Sum of the times to pass output rows to successful requests, in microseconds",
        lambda work: work.compute_output_ns // 1000,
    ),
}
_BUSY = "cnnserve_instance_busy_seconds"
_BUSY_TEXT = "Time in which instances assembled and ran batches, all instances of a version together, in seconds"
_REFUSALS = "cnnserve_refused_requests"
_REFUSALS_TEXT = "Number of requests, also on streams, and of single images that got an error, by reason"
# Triton's names.
_GPU_GAUGES: Mapping[str, tuple[str, Callable[[Gpu], float | None]]] = {
    "nv_gpu_utilization": ("Share of the last second in which the GPU worked, 0 to 1", lambda gpu: gpu.utilization),
    "nv_gpu_memory_total_bytes": ("Memory of the GPU, in bytes", lambda gpu: gpu.memory_total_bytes),
    "nv_gpu_memory_used_bytes": ("Used memory of the GPU, in bytes", lambda gpu: gpu.memory_used_bytes),
    "nv_gpu_power_usage": ("Power of the GPU, in watts", lambda gpu: gpu.power_watts),
}
_BAD_ROWS = "cnnserve_bad_rows"
_BAD_ROWS_TEXT = "Number of output rows that were not sent, because their values are not finite or no probabilities"
_LATENCIES: Mapping[str, tuple[str, Callable[[Work], Distribution]]] = {
    "cnnserve_request_duration_seconds": (
        "Time of a successful request from arrival at the model to response, in seconds",
        lambda work: work.request,
    ),
    "cnnserve_queue_duration_seconds": (
        "Time of a successful request in the queue, in seconds",
        lambda work: work.queue,
    ),
    "cnnserve_preprocessing_duration_seconds": (
        "Time to preprocess the images of a successful request, in seconds (requests with images only)",
        lambda work: work.preprocessing,
    ),
    "cnnserve_compute_duration_seconds": (
        "Time to assemble and to run the batch of a successful request, in seconds",
        lambda work: work.compute,
    ),
}
_LATENCY_BOUNDS = (*(str(bound / _NS_PER_S) for bound in BOUNDS_NS), "+Inf")
_BATCH_SIZES = tuple(2**power for power in range(11))
_BATCH_BOUNDS = (*(str(float(size)) for size in _BATCH_SIZES), "+Inf")


def write(snapshot: Snapshot, *, open_metrics: bool = False) -> bytes:
    """Returns a snapshot and the metrics of the process as text. May be called on any thread."""
    families = _Families(snapshot)
    if open_metrics:
        # No name here needs escaping. With this scheme the library finds that out fastest.
        text: bytes = open_metrics_text(families, escaping=ALLOWUTF8)  # type: ignore[no-untyped-call]
        return text
    text = plain_text(families)
    # prometheus_client adds _total to the name of every counter, but Triton's counters have no suffix. So they have an
    # unknown type, which becomes "counter" here. In OpenMetrics it stays unknown, because OpenMetrics demands _total.
    for name in (*_TRITON_COUNTERS, _FAILURES):
        text = text.replace(b"# TYPE %s untyped" % name.encode(), b"# TYPE %s counter" % name.encode(), 1)
    return text


class _Families:
    """A collector of one snapshot, for prometheus_client's writers."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._versions = [(_labels(version), version) for version in snapshot.versions]
        self._worked = [(labels, version.work) for labels, version in self._versions if version.work is not None]

    def collect(self) -> Iterator[Metric]:
        """Yields every family once, even if it has no sample."""
        yield from self._triton()
        yield from self._models()
        yield from self._self_tests()
        yield from self._histograms()
        yield from drift_families(self._versions)
        yield from self._server()
        yield from _gpus()
        yield from ProcessCollector(registry=None).collect()

    def _triton(self) -> Iterator[Metric]:
        for name, (text, count_of) in _TRITON_COUNTERS.items():
            yield family("unknown", name, text, self._each(count_of))
        failures = (
            ({**labels, "reason": reason}, count)
            for labels, work in self._worked
            for reason, count in work.failures.items()
        )
        yield family("unknown", _FAILURES, "Number of failed requests, by reason", failures)
        yield counter(_BAD_ROWS, _BAD_ROWS_TEXT, self._each(lambda work: work.bad_rows))
        waiting = self._each(lambda work: work.waiting)
        yield family("gauge", "nv_inference_pending_request_count", "Number of requests in the queue", waiting)
        instances = self._each(lambda work: work.instances)
        yield family(
            "gauge", "cnnserve_instances", "Number of instances, each of which runs one batch at a time", instances
        )
        yield counter(_BUSY, _BUSY_TEXT, self._each(lambda work: work.busy_ns / _NS_PER_S))
        loads = ((labels, version.load_s) for labels, version in self._versions if version.load_s is not None)
        yield family("gauge", "nv_model_load_duration_secs", "Time to load a version until READY, in seconds", loads)

    def _models(self) -> Iterator[Metric]:
        states = (
            ({**labels, "state": state.value}, version.state is state)
            for labels, version in self._versions
            for state in State
        )
        yield family("gauge", "cnnserve_model_state", "1 for the state of a version, 0 for all other states", states)
        nodes = (
            ({**labels, "provider": provider}, count)
            for labels, version in self._versions
            for provider, count in version.placement.items()
        )
        text = "Number of nodes of the model's graph on each execution provider"
        yield family("gauge", "cnnserve_model_nodes", text, nodes)

    def _self_tests(self) -> Iterator[Metric]:
        loaded = [(labels, version.self_test) for labels, version in self._versions if version.work is not None]
        text = "1 for a loaded version that has passed its self-test, 0 for one without a manifest, which has none"
        yield family(
            "gauge", "cnnserve_self_test_passed", text, ((labels, test is not None) for labels, test in loaded)
        )
        tested = [(labels, test) for labels, test in loaded if test is not None]
        differences = (
            ({**labels, "run": run}, difference)
            for labels, test in tested
            for run, difference in (("alone", test.golden_difference), ("batch", test.batch_difference))
        )
        text = "Largest difference of a probability of the golden images from the manifest, alone and in batches"
        yield family("gauge", "cnnserve_self_test_difference", text, differences)
        tolerances = ((labels, test.tolerance) for labels, test in tested)
        text = "Largest difference of a probability with which the self-test passes"
        yield family("gauge", "cnnserve_self_test_tolerance", text, tolerances)

    def _histograms(self) -> Iterator[Metric]:
        for name, (text, latency_of) in _LATENCIES.items():
            values = ((labels, _in_seconds(latency)) for labels, latency in self._each(latency_of))
            yield Family("histogram", name, text, buckets(name, _LATENCY_BOUNDS, values))
        name = "cnnserve_batch_size"
        sizes = self._each(lambda work: _by_size(work.batches))
        yield Family("histogram", name, "Number of images (rows) in a run", buckets(name, _BATCH_BOUNDS, sizes))

    def _server(self) -> Iterator[Metric]:
        now = self._snapshot
        text = "Memory that requests in flight and images being decoded hold, in bytes"
        held = [({"by": "requests"}, now.held_bytes), ({"by": "decoding"}, now.decoding_bytes)]
        yield family("gauge", "cnnserve_memory_held_bytes", text, held)
        text = "Limit of the memory that requests and images being decoded may hold together"
        yield GaugeMetricFamily("cnnserve_memory_limit_bytes", f"{text}, in bytes (max_pending_mib)", now.limit_bytes)
        text = "Number of requests refused because they did not fit into the memory limit (max_pending_mib)"
        yield CounterMetricFamily("cnnserve_memory_refused_requests", text, now.refused)
        text = "Number of log messages that were dropped, because standard error was not read"
        yield CounterMetricFamily("cnnserve_log_dropped_messages", text, now.unlogged)
        text = "Number of audit lines that were dropped, because standard error was not read"
        yield CounterMetricFamily("cnnserve_audit_dropped_lines", text, now.unaudited)
        text = "End of the TLS certificate, in seconds since 1970"
        ends: list[tuple[Labels, float]] = [] if now.certificate_end is None else [({}, now.certificate_end)]
        yield family("gauge", "cnnserve_certificate_expiry_seconds", text, ends)
        refusals = (({"reason": name}, count) for name, count in now.refusals.items())
        yield counter(_REFUSALS, _REFUSALS_TEXT, refusals)
        info = {"version": now.server_version, "onnxruntime": now.runtime_version}
        yield InfoMetricFamily("cnnserve_server", "Versions of cnnserve and ONNX Runtime", info)

    def _each(self, value_of: Callable[[Work], _T]) -> Iterator[tuple[Labels, _T]]:
        return ((labels, value_of(work)) for labels, work in self._worked)


def _gpus() -> Iterator[Metric]:
    found = gpus.readings()
    for name, (text, value_of) in _GPU_GAUGES.items():
        values = [({"gpu_uuid": gpu.uuid}, value) for gpu in found if (value := value_of(gpu)) is not None]
        yield family("gauge", name, text, values)


def _in_seconds(latency: Distribution) -> tuple[Sequence[int], float]:
    return latency.counts, latency.total_ns / _NS_PER_S


def _by_size(batches: Mapping[int, int]) -> tuple[list[int], int]:
    """Returns the number of runs in each bucket of batch sizes, and the number of images of all runs."""
    counts = [0] * len(_BATCH_BOUNDS)
    for size, runs in batches.items():
        counts[bisect_left(_BATCH_SIZES, size)] += runs
    return counts, sum(size * runs for size, runs in batches.items())


def _labels(version: Version) -> Labels:
    return {"model": version.model, "version": version.version}
