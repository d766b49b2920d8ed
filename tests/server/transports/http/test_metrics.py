"""`GET /metrics`: counts as in ModelStatistics, models that do not serve, and servers that start or stop."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_open_metrics
from prometheus_client.parser import text_string_to_metric_families as read_plain

import cnnserve
from cnnserve.batching.statistics import BOUNDS_NS, Histogram, Statistics
from cnnserve.errors import (
    DeadlineExceeded,
    InferenceFailed,
    InvalidInput,
    QueueFull,
    ShuttingDown,
)
from cnnserve.images.decoding_pool import DecodingPool
from cnnserve.model.loader import OpenVersion
from cnnserve.process.admission import MemoryBudget
from cnnserve.registry.opening import VersionOpener
from cnnserve.registry.registry import Registry
from cnnserve.registry.snapshot import snapshot
from cnnserve.repository.version_files import VersionFiles
from cnnserve.runtime.session import runtime_version
from cnnserve.transports.http.exposition import write
from cnnserve.wire import open_inference_pb2 as o
from cnnserve_client import Client
from oip import Oip, rows, tensor
from support import HANG_S, RunningServer, open_files, picture, serving, spawn, until, wait_until, write_version

_WAITING = """
max_batch_size: 8
dynamic_batching {
  preferred_batch_size: [ 8 ]
  max_queue_delay_microseconds: 6000000
  default_queue_policy { max_queue_size: 4 }
}
"""


class Metrics:
    """The samples of a scrape, by name and labels."""

    def __init__(self, text: str) -> None:
        self._samples: dict[str, dict[frozenset[tuple[str, str]], float]] = {}
        self.text = text
        self.types: dict[str, str] = {}
        for family in read_plain(text):
            self.types[family.name] = family.type
            for sample in family.samples:
                labels = frozenset(sample.labels.items())
                assert labels not in self._samples.setdefault(sample.name, {}), f"{sample} is there twice"
                self._samples[sample.name][labels] = sample.value

    def __call__(self, name: str, **labels: str) -> float:
        """Returns the only value; Triton's counters have Triton's names here (the parser adds _total to them)."""
        found = self.all(name, **labels)
        assert len(found) == 1, f"{name} {labels}: {found}"
        return next(iter(found.values()))

    def all(self, name: str, **labels: str) -> dict[tuple[str, ...], float]:
        """Returns the values of all samples with these labels, by the values of their other labels, sorted by label."""
        samples = self._samples.get(name) or self._samples.get(f"{name}_total", {})
        wanted = set(labels.items())
        return {tuple(v for _, v in sorted(own - wanted)): value for own, value in samples.items() if wanted <= own}


def scrape(server: RunningServer, **headers: str) -> httpx.Response:
    return httpx.get(f"http://127.0.0.1:{server.http_port}/metrics", headers=headers, timeout=HANG_S)


def metrics_of(server: RunningServer) -> Metrics:
    response = scrape(server)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return Metrics(response.text)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    """Models: `tiny`, `altered` (fails to load), `empty` (no version), `waiting` (its queue waits 6 s for 8 images)."""
    root = tmp_path / "repository"
    write_version(root / "tiny" / "1")
    altered = write_version(root / "altered" / "7")
    (altered / "labels.txt").write_text("dark\nleft\nblight\n")
    (root / "empty").mkdir()
    write_version(root / "waiting" / "1")
    (root / "waiting" / "config.pbtxt").write_text(_WAITING)
    with serving(tmp_path / "log", root) as server:
        yield server


def test_counts_are_those_of_model_statistics(server: RunningServer) -> None:
    images, tensors = [1, 2, 3, 8, 1, 5], [4, 1, 7]
    with Client(server.address) as client, Oip(server.address) as oip:
        for count in images:
            client.classify([picture("left")] * count, model="tiny")
        for count in tensors:
            oip("ModelInfer", tensor(rows(count)))
        stats = oip("ModelStatistics", o.ModelStatisticsRequest(name="tiny")).model_stats[0]
    metrics = metrics_of(server)
    of_tiny = {"model": "tiny", "version": "1"}
    own = stats.inference_stats
    requests, total = len(images + tensors), sum(images + tensors)
    assert metrics("nv_inference_request_success", **of_tiny) == own.success.count == requests
    assert metrics("nv_inference_count", **of_tiny) == stats.inference_count == total
    assert metrics("nv_inference_exec_count", **of_tiny) == stats.execution_count == requests
    assert metrics.all("nv_inference_request_failure", **of_tiny) == dict.fromkeys(
        [("REJECTED",), ("CANCELED",), ("BACKEND",), ("OTHER",)], 0
    )
    assert metrics("nv_inference_pending_request_count", **of_tiny) == 0
    for name, duration in [
        ("request", own.success),
        ("queue", own.queue),
        ("compute_input", own.compute_input),
        ("compute_infer", own.compute_infer),
        ("compute_output", own.compute_output),
    ]:
        assert metrics(f"nv_inference_{name}_duration_us", **of_tiny) == duration.ns // 1000
        assert metrics.types[f"nv_inference_{name}_duration_us"] == "counter"
    for name, count in [
        ("request", requests),
        ("queue", requests),
        ("compute", requests),
        ("preprocessing", len(images)),
    ]:
        assert metrics(f"cnnserve_{name}_duration_seconds_count", **of_tiny) == count
        buckets = list(metrics.all(f"cnnserve_{name}_duration_seconds_bucket", **of_tiny).values())
        assert len(buckets) == len(BOUNDS_NS) + 1
        assert buckets == sorted(buckets)
        assert buckets[-1] == count
    assert metrics("cnnserve_request_duration_seconds_sum", **of_tiny) == pytest.approx(own.success.ns / 1e9)
    assert metrics("cnnserve_queue_duration_seconds_sum", **of_tiny) == pytest.approx(own.queue.ns / 1e9)
    steps_ns = own.compute_input.ns + own.compute_infer.ns
    parts = [metrics(f"cnnserve_{name}_duration_seconds_sum", **of_tiny) for name in ("preprocessing", "compute")]
    assert sum(parts) == pytest.approx(steps_ns / 1e9)
    by_size = metrics.all("cnnserve_batch_size_bucket", **of_tiny)
    assert [by_size[str(2.0**power),] for power in range(11)] == [3, 4, 6, 9, 9, 9, 9, 9, 9, 9, 9]
    assert (metrics("cnnserve_batch_size_count", **of_tiny), metrics("cnnserve_batch_size_sum", **of_tiny)) == (9, 32)


def test_models_and_what_serves_them(server: RunningServer) -> None:
    with Client(server.address) as client:
        placement = client.get_model("tiny").versions[0].placement
    metrics = metrics_of(server)
    nodes = metrics.all("cnnserve_model_nodes", model="tiny", version="1")
    assert nodes == {(provider,): count for provider, count in placement.items()} == {("CPUExecutionProvider",): 4}
    assert 0 < metrics("nv_model_load_duration_secs", model="tiny", version="1") < HANG_S
    assert _states(metrics) == {
        ("altered", "7"): "UNAVAILABLE",
        ("empty", ""): "UNAVAILABLE",
        ("tiny", "1"): "READY",
        ("waiting", "1"): "READY",
    }
    # A version that has not served has no counts.
    assert {model for model, _ in metrics.all("nv_inference_count")} == {"tiny", "waiting"}
    assert metrics("cnnserve_server_info", version=cnnserve.__version__, onnxruntime=runtime_version()) == 1
    assert metrics("cnnserve_memory_limit_bytes") == 1024 * 2**20
    assert metrics.all("cnnserve_memory_held_bytes") == {("requests",): 0, ("decoding",): 0}
    assert metrics("process_resident_memory_bytes") > 2**20
    assert metrics("process_cpu_seconds") > 0
    assert metrics("process_open_fds") > 0


def test_failures_by_reason_and_what_waits(server: RunningServer) -> None:
    of_waiting = {"model": "waiting", "version": "1"}
    with Oip(server.address) as oip:
        infer = oip.rpc("ModelInfer")
        oip.fails("ModelInfer", tensor(rows(5), model="waiting"))
        waits = infer.future(tensor(rows(3), model="waiting"), timeout=HANG_S)
        wait_until(lambda: metrics_of(server)("nv_inference_pending_request_count", **of_waiting) == 1)
        assert metrics_of(server)("cnnserve_memory_held_bytes", by="requests") > 0
        oip.fails("ModelInfer", tensor(rows(2), model="waiting"))
        # The model cannot take this tensor, so the request is not counted.
        oip.fails("ModelInfer", tensor(rows(1, side=5), model="waiting"))
        waits.cancel()
        wait_until(lambda: metrics_of(server)("nv_inference_pending_request_count", **of_waiting) == 0)
        metrics = metrics_of(server)
        failed = metrics.all("nv_inference_request_failure", **of_waiting)
        assert failed == {("REJECTED",): 1, ("CANCELED",): 1, ("BACKEND",): 0, ("OTHER",): 1}
        stats = oip("ModelStatistics", o.ModelStatisticsRequest(name="waiting")).model_stats[0]
        assert sum(failed.values()) == stats.inference_stats.fail.count
        assert metrics("nv_inference_request_success", **of_waiting) == 0
        assert metrics("cnnserve_request_duration_seconds_count", **of_waiting) == 0
        assert metrics("cnnserve_memory_held_bytes", by="requests") == 0


def test_what_models_answer_and_are_asked(server: RunningServer) -> None:
    kinds = ["left"] * 3 + ["bright"] * 2 + ["dark"]
    with Client(server.address) as client:
        for kind in kinds:
            client.classify(picture(kind), model="tiny")
    metrics = metrics_of(server)
    of_tiny = {"model": "tiny", "version": "1"}
    assert metrics.all("cnnserve_predictions", **of_tiny) == {("0", "dark"): 1, ("1", "left"): 3, ("2", "bright"): 2}
    for name in ("cnnserve_top1_probability", "cnnserve_entropy_ratio"):
        assert metrics(f"{name}_count", **of_tiny) == len(kinds)
        assert metrics.types[name] == "histogram"
    # The model is almost sure of each of these images.
    assert metrics("cnnserve_top1_probability_bucket", le="0.99", **of_tiny) == 0
    assert metrics("cnnserve_top1_probability_sum", **of_tiny) == pytest.approx(len(kinds), rel=1e-2)
    assert metrics("cnnserve_entropy_ratio_bucket", le="0.05", **of_tiny) == len(kinds)
    # The golden image is "left": one half is 0, the other 255.
    assert metrics("cnnserve_input_mean", set="golden", **of_tiny) == pytest.approx(127.5)
    assert metrics("cnnserve_input_deviation", set="golden", **of_tiny) == pytest.approx(127.5)
    assert 0 <= metrics("cnnserve_input_mean", set="live", **of_tiny) <= 255
    assert not metrics.all("cnnserve_predictions", model="waiting")


def test_drift_need_not_be_counted(tmp_path: Path) -> None:
    write_version(tmp_path / "repository" / "tiny" / "1")
    with (
        serving(tmp_path / "log", tmp_path / "repository", "--no-drift-metrics") as server,
        Client(server.address) as client,
    ):
        client.classify(picture("left"), model="tiny")
        metrics = metrics_of(server)
    assert metrics("nv_inference_count", model="tiny") == 1
    for name in ("cnnserve_predictions", "cnnserve_top1_probability_count", "cnnserve_input_mean"):
        assert not metrics.all(name)


def test_self_tests_instances_and_refusals(server: RunningServer) -> None:
    of_tiny = {"model": "tiny", "version": "1"}
    before = metrics_of(server)
    assert before("cnnserve_self_test_passed", **of_tiny) == 1
    assert not before.all("cnnserve_self_test_passed", model="altered")
    tolerance = before("cnnserve_self_test_tolerance", **of_tiny)
    differences = before.all("cnnserve_self_test_difference", **of_tiny)
    assert differences.keys() == {("alone",), ("batch",)}
    assert all(0 <= difference <= tolerance for difference in differences.values())
    assert before("cnnserve_instances", **of_tiny) == 1
    assert before("cnnserve_instance_busy_seconds", **of_tiny) == 0
    with Oip(server.address) as oip:
        oip("ModelInfer", tensor(rows(2)))
        oip.fails("ModelInfer", tensor(rows(2), model="unknown"))
        oip.fails("ModelInfer", tensor(rows(1, side=5)))
        oip.fails("ModelInfer", tensor(rows(1, side=5)))
    httpx.post(f"http://127.0.0.1:{server.http_port}/v2/models/unknown/infer", json={"inputs": []}, timeout=HANG_S)
    after = metrics_of(server)
    assert 0 < after("cnnserve_instance_busy_seconds", **of_tiny) < HANG_S
    assert after("cnnserve_refused_requests", reason="invalid_input") == 2
    assert after("cnnserve_refused_requests", reason="model_not_found") == 2
    assert after("cnnserve_refused_requests", reason="queue_full") == 0


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (QueueFull("full", 1), "REJECTED"),
        (DeadlineExceeded("late"), "REJECTED"),
        (ShuttingDown("ends"), "REJECTED"),
        (asyncio.CancelledError(), "CANCELED"),
        (InferenceFailed("broke"), "BACKEND"),
        (InvalidInput("wrong sizes"), "OTHER"),
        (ValueError("unforeseen"), "OTHER"),
    ],
)
def test_the_reason_of_a_failure(error: BaseException, reason: str) -> None:
    statistics = Statistics()
    with pytest.raises(type(error)), statistics.counting_failure(time.monotonic_ns()):
        raise error
    assert {name for name, count in statistics.failures.items() if count} == {reason}
    assert statistics.failures[reason] == statistics.fail.count == 1


def test_a_bound_belongs_to_its_bucket() -> None:
    histogram = Histogram()
    for ns in (0, BOUNDS_NS[0], BOUNDS_NS[0] + 1, BOUNDS_NS[-1], BOUNDS_NS[-1] + 1):
        histogram.add(ns)
    assert histogram.counts == [2, 1, *[0] * (len(BOUNDS_NS) - 3), 1, 1]
    assert histogram.total_ns == 2 * BOUNDS_NS[0] + 1 + 2 * BOUNDS_NS[-1] + 1


def test_a_reload_starts_at_zero_and_an_unload_leaves_nothing(tmp_path: Path) -> None:
    write_version(tmp_path / "repository" / "tiny" / "1")
    flags = ["--model-control-mode", "explicit", "--allow-model-control", "--load-model", "tiny"]
    with (
        serving(tmp_path / "log", tmp_path / "repository", *flags) as server,
        Client(server.address) as client,
        httpx.Client(base_url=f"http://127.0.0.1:{server.http_port}", timeout=HANG_S) as http,
    ):
        of_tiny = {"model": "tiny", "version": "1"}
        client.classify([picture("left")] * 3, model="tiny")
        assert metrics_of(server)("nv_inference_count", **of_tiny) == 3
        config = json.dumps({"max_batch_size": 4})
        http.post("/v2/repository/models/tiny/load", json={"parameters": {"config": config}}).raise_for_status()
        again = metrics_of(server)
        assert again("nv_inference_count", **of_tiny) == again("cnnserve_batch_size_count", **of_tiny) == 0
        client.classify([picture("left")], model="tiny")
        assert metrics_of(server)("nv_inference_count", **of_tiny) == 1
        client.unload_model("tiny")
        gone = metrics_of(server)
        # An alert for models that are not READY must not report a model that was unloaded on purpose.
        assert not _states(gone)
        assert not gone.all("nv_inference_count")
        assert not gone.all("cnnserve_model_nodes")


def test_a_draining_server_is_measured_to_its_end(server: RunningServer) -> None:
    url = f"http://127.0.0.1:{server.http_port}"
    with Oip(server.address) as oip, httpx.Client(base_url=url, timeout=HANG_S) as http:
        waits = oip.rpc("ModelInfer").future(tensor(rows(2), model="waiting"), timeout=HANG_S)
        wait_until(lambda: metrics_of(server)("nv_inference_pending_request_count", model="waiting") == 1)
        server.process.terminate()
        wait_until(lambda: http.get("/v2").status_code == 503)
        response = http.get("/metrics")
        assert response.status_code == 200
        assert response.headers["connection"] == "close"
        assert Metrics(response.text)("nv_inference_pending_request_count", model="waiting") == 1
        assert waits.result().outputs
    assert server.wait() == 0


def test_a_server_that_just_starts_is_measured(tmp_path: Path) -> None:
    for number in range(3):
        write_version(tmp_path / "repository" / f"m{number}" / "1")
    server = spawn(tmp_path / "log", "--model-repository", tmp_path / "repository")
    try:
        server.http_port = int(server.wait_for(r"HTTP port (\d+)")[1])
        assert set(_states(metrics_of(server)).values()) <= {"LOADING", "READY"}
    finally:
        server.terminate()


async def test_a_version_that_loads_has_a_state_and_no_counts(tmp_path: Path) -> None:
    gate = threading.Event()

    def held(files: VersionFiles, *, on_stage: Callable[[str], None]) -> OpenVersion:
        gate.wait(HANG_S)
        return open_files(files, on_stage=on_stage)

    write_version(tmp_path / "m" / "3")
    with DecodingPool(1) as decoders:
        registry = Registry(tmp_path, VersionOpener(held, decoders))
        budget = MemoryBudget(100)
        load = asyncio.create_task(registry.load("m"))
        try:
            await until(lambda: "m" in {model.name for model in registry.models if model.versions})
            metrics = _written(registry, budget)
            assert _states(metrics) == {("m", "3"): "LOADING"}
            assert not metrics.all("nv_inference_count")
            assert not metrics.all("nv_model_load_duration_secs")
            gate.set()
            await load
            with budget.hold(60), pytest.raises(QueueFull), budget.hold(41):
                pass
            with budget.hold(60), budget.decoding(30):
                metrics = _written(registry, budget)
        finally:
            gate.set()
            await load
            await registry.close()
    assert _states(metrics) == {("m", "3"): "READY"}
    assert metrics("nv_inference_count", model="m") == 0
    assert metrics.all("cnnserve_memory_held_bytes") == {("requests",): 60, ("decoding",): 30}
    assert metrics("cnnserve_memory_refused_requests") == 1


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", "text/plain"),
        ("*/*", "text/plain"),
        ("text/plain;version=0.0.4,application/openmetrics-text", "text/plain"),
        ("application/openmetrics-text;q=0, text/plain", "text/plain"),
        ("text/html, Application/OpenMetrics-Text; version=no-number", "application/openmetrics-text"),
        # Prometheus 3.
        (
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;"
            "version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,"
            "*/*;q=0.2",
            "application/openmetrics-text",
        ),
    ],
)
def test_the_first_format_that_is_accepted_is_used(tiny_server: RunningServer, accept: str, kind: str) -> None:
    response = scrape(tiny_server, Accept=accept)
    assert response.headers["content-type"].startswith(f"{kind}; version=")
    assert response.headers["content-encoding"] == "gzip"
    read: Any = read_open_metrics if kind != "text/plain" else read_plain
    families = {family.name: family for family in read(response.text)}
    assert families["cnnserve_model_state"].type == "gauge"
    assert families["cnnserve_request_duration_seconds"].type == "histogram"
    # Both formats have Triton's names, although counters in OpenMetrics end with _total.
    assert '\nnv_inference_count{model="tiny",version="1"} ' in response.text
    assert f"\n# TYPE nv_inference_count {'counter' if kind == 'text/plain' else 'unknown'}\n" in response.text


def test_other_methods_and_a_head(tiny_server: RunningServer) -> None:
    url = f"http://127.0.0.1:{tiny_server.http_port}/metrics"
    assert httpx.head(url).status_code == 200
    assert httpx.options(url).headers["allow"] == "GET, HEAD, OPTIONS"
    refused = httpx.post(url)
    assert refused.status_code == 405
    assert "method POST is not supported on this path" in refused.json()["error"]


def _states(metrics: Metrics) -> dict[tuple[str, str], str]:
    """Returns the state of every version, after checking that exactly one state of each is 1 and the others are 0."""
    states: dict[tuple[str, str], str] = {}
    for (model, state, version), value in metrics.all("cnnserve_model_state").items():
        assert value in (0, 1)
        if value:
            assert (model, version) not in states
            states[model, version] = state
    assert 5 * len(states) == len(metrics.all("cnnserve_model_state"))
    return states


def _written(registry: Registry, budget: MemoryBudget) -> Metrics:
    return Metrics(write(snapshot(registry, budget)).decode())
