"""Traces of a real server, exported with OTLP to a real HTTP server."""

import contextlib
import http.server
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from cnnserve.wire import classifier_pb2 as c
from oip import Oip, rows, tensor
from support import HANG_S, RunningServer, picture, serving, wait_until, write_version

trace_service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http")

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = PARENT[:-1] + "0"
_WAITING = """
max_batch_size: 8
dynamic_batching { preferred_batch_size: [ 8 ] max_queue_delay_microseconds: 60000000 }
"""


class Collector:
    """An OTLP receiver on 127.0.0.1: `spans` are all spans that came."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                request = trace_service.ExportTraceServiceRequest.FromString(body)
                collector.spans += [
                    span for one in request.resource_spans for scope in one.scope_spans for span in scope.spans
                ]
                collector.services |= {
                    attribute.value.string_value
                    for one in request.resource_spans
                    for attribute in one.resource.attributes
                    if attribute.key == "service.name"
                }
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.services: set[str] = set()
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def named(self, name: str) -> list[Any]:
        return [span for span in self.spans if span.name == name]

    def parts_of(self, span: Any) -> dict[str, Any]:
        return {one.name: one for one in self.spans if one.parent_span_id == span.span_id}


@contextlib.contextmanager
def tracing(folder: Path, *flags: str, **variables: str) -> Iterator[tuple[RunningServer, Collector]]:
    """A server that exports its traces, and what it has exported when it has ended."""
    collector = Collector()
    threading.Thread(target=collector.server.serve_forever, daemon=True).start()
    variables |= {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server.server_address[1]}",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        write_version(folder / "repository" / "tiny" / "1")
        waiting = write_version(folder / "repository" / "waiting" / "1")
        waiting.with_name("config.pbtxt").write_text(_WAITING)
        try:
            with serving(folder / "log", folder / "repository", "--tracing", *flags) as server:
                yield server, collector
        finally:
            collector.server.shutdown()
            collector.server.server_close()


def attributes(span: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}


def classify(server: RunningServer, *images: bytes, model: str = "tiny", traceparent: str = "") -> None:
    with grpc.insecure_channel(server.address) as channel:
        call = channel.unary_unary(
            "/cnnserve.v1.Classifier/Classify",
            request_serializer=c.ClassifyRequest.SerializeToString,
            response_deserializer=c.ClassifyResponse.FromString,
        )
        request = c.ClassifyRequest(model=model, images=[c.Image(encoded=image) for image in images])
        metadata = (("traceparent", traceparent),) if traceparent else ()
        call(request, timeout=HANG_S, metadata=metadata)


@pytest.mark.parametrize("transport", ["core", "aio"])
def test_a_request_goes_on_with_the_trace_of_its_client(tmp_path: Path, transport: str) -> None:
    with tracing(tmp_path, "--grpc-transport", transport, "--access-log") as (server, collector):
        classify(server, picture("left"), picture("dark"), traceparent=PARENT)
        with contextlib.suppress(grpc.RpcError):
            classify(server, picture("left"), model="unknown", traceparent=PARENT)
        classify(server, picture("left"), traceparent=UNSAMPLED)
    good, bad = collector.named("cnnserve.v1.Classifier/Classify")
    assert collector.services == {"cnnserve"}
    for span in (good, bad):
        assert (span.trace_id.hex(), span.parent_span_id.hex()) == (PARENT[3:35], PARENT[36:52])
        assert span.kind == 2  # SERVER
        assert span.status.code == 0
    found = attributes(good)
    assert (
        found.items()
        >= {
            "rpc.system.name": "grpc",
            "rpc.method": "cnnserve.v1.Classifier/Classify",
            "rpc.response.status_code": "OK",
            "network.peer.address": "127.0.0.1",
            "cnnserve.model": "tiny",
            "cnnserve.images": 2,
        }.items()
    )
    assert "error.type" not in found
    assert attributes(bad)["error.type"] == attributes(bad)["rpc.response.status_code"] == "NOT_FOUND"
    parts = collector.parts_of(good)
    assert parts.keys() == {"decode", "queue", "run"}
    order = [good.start_time_unix_nano, *(parts[name].start_time_unix_nano for name in ("decode", "queue", "run"))]
    # Decoding begins when the model has the request, and the queue's time is taken at the dispatch.
    assert order[1:] == sorted(order[1:])
    assert order[0] <= order[2]
    assert parts["run"].end_time_unix_nano <= good.end_time_unix_nano
    assert server.log.count(f"trace_id={PARENT[3:35]}") == 2


def test_a_batch_and_its_requests_have_links_to_each_other(tmp_path: Path) -> None:
    with tracing(tmp_path) as (server, collector), Oip(server.address) as oip:
        infer = oip.rpc("ModelInfer")
        waits = [infer.future(tensor(rows(4), model="waiting"), timeout=HANG_S) for _ in range(2)]
        for call in waits:
            assert call.result().outputs
        wait_until(lambda: len(collector.named("batch")) == 1)
    (batch,) = collector.named("batch")
    requests = collector.named("inference.GRPCInferenceService/ModelInfer")
    assert len(requests) == 2
    assert {link.span_id for link in batch.links} == {span.span_id for span in requests}
    assert all([link.span_id for link in span.links] == [batch.span_id] for span in requests)
    assert batch.parent_span_id == b""
    assert batch.trace_id not in {span.trace_id for span in requests}
    assert attributes(batch)["cnnserve.batch_size"] == 8
    run = collector.parts_of(requests[0])["run"]
    assert (batch.start_time_unix_nano, batch.end_time_unix_nano) == (run.start_time_unix_nano, run.end_time_unix_nano)


def test_http_requests_and_known_requests_are_traced(tmp_path: Path) -> None:
    with tracing(tmp_path) as (server, collector), Oip(server.address) as oip:
        for _ in range(4):
            oip("ModelInfer", tensor(rows(1)))
        values = {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 8, 8, 1], "data": [0] * 64}]}
        url = f"http://127.0.0.1:{server.http_port}/v2/models/tiny/infer"
        httpx.post(url, json=values, headers={"traceparent": PARENT}, timeout=HANG_S).raise_for_status()
    spans = collector.named("inference.GRPCInferenceService/ModelInfer")
    assert len(spans) == 5
    assert [span.trace_id.hex() == PARENT[3:35] for span in spans] == [False] * 4 + [True]


def test_a_collector_that_is_away_costs_no_request_and_no_long_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_version(tmp_path / "repository" / "tiny" / "1")
    with socket.create_server(("127.0.0.1", 0)) as unused:
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    with serving(tmp_path / "log", tmp_path / "repository", "--tracing", "--drain-grace-s", "0") as server:
        for _ in range(3):
            classify(server, picture("left"))
        server.wait_for("Transient error")
        classify(server, picture("left"))
        assert server.terminate() == 0
    assert "Traceback" not in server.log


def test_an_unknown_exporter_is_told(tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir()
    ended = subprocess.run(
        [sys.executable, "-m", "cnnserve", "serve", "--repository", str(tmp_path / "repository"), "--tracing"],
        env=os.environ | {"OTEL_TRACES_EXPORTER": "pigeon"},
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert ended.returncode == 2
    assert "tracing needs the exporter 'pigeon'" in ended.stderr
    assert "otlp_proto_http" in ended.stderr
