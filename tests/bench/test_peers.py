"""cnnserve beside its peers: what is pure in `bench/peers`, its page, and a run without the peers' environments."""

import base64
import dataclasses
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from cnnserve.images.preprocessing import Preprocessor
from cnnserve.repository.manifest import Preprocessing, Resize, TensorInfo
from cnnserve.wire import classifier_pb2
from cnnserve.wire import open_inference_pb2 as oip
from support import HANG_S, REPOSITORY

sys.path.append(str(REPOSITORY.parent / "bench"))

from peers import page, processes, report, summary, wires
from peers.catalogue import PEERS
from peers.inputs import Inputs
from peers.servers import network
from peers.summary import EMPTY, OWN, PLAIN

BENCH = REPOSITORY.parent / "bench"


def cell(rate: float, **more: Any) -> dict[str, Any]:
    times = {"p50_ms": 1000 / rate, "p99_ms": 2000 / rate, "cpu_ms": 1.0, "failed": 0, "client_limit": ""}
    return {"images_per_s": rate, **times, **more}


def result(**cells: dict[str, Any]) -> dict[str, Any]:
    named = {name.replace("_", " "): value for name, value in cells.items()}
    return {"start_s": 1.0, "memory_mib": 100.0, "processes": 2, "cells": named}


def test_shares_compare_cells_of_the_same_round() -> None:
    results = {
        PLAIN: [result(tensor_run_16=cell(rate)) for rate in (100, 50, 200)],
        OWN: [result(tensor_gRPC_16=cell(rate), tensor_HTTP_16=cell(1)) for rate in (90, 45, 190)],
        # It failed in the third round.
        "peer": [result(tensor_HTTP_16=cell(rate)) for rate in (50, 50)],
    }
    plain, grpc, http, peer = summary.rows(results, "tensor", 16)
    assert (plain.server, plain.protocol, plain.share) == (PLAIN, "", None)
    assert (grpc.server, grpc.protocol, grpc.numbers["images_per_s"], grpc.share) == (OWN, "gRPC", 90, 0.9)
    assert (http.protocol, http.share) == ("HTTP", 0.01)
    assert (peer.server, peer.share) == ("peer", 0.75)
    assert summary.rows(results, "tensor", 1) == summary.rows(results, "image", 16) == []


def test_a_row_names_what_spoils_it() -> None:
    spoilt = cell(1234.5, failed=3, client_limit="a load process used 0.99 cores", p50_ms=12.345, cpu_ms=0.5)
    (row,) = summary.rows({"peer": [result(tensor_HTTP_1=spoilt)]}, "tensor", 1)
    title, rate, share, p50, _, cpu = report.cells(row)
    assert title == "peer HTTP (3 failed, the load generator was the limit)"
    assert (rate, share, p50, cpu) == ("1,234", "-", "12.3", "0.50")


def test_the_page_has_the_figures_of_the_committed_results() -> None:
    text = page.PAGE.read_text()
    assert page.rendered(text) == text, "bench/results has newer results: run python bench/peers/page.py"
    assert all(path.is_file() for path in page.pictures().values()), "run python bench/peers/page.py"


def test_the_page_shows_every_server_and_why_one_did_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = {
        PLAIN: [result(tensor_run_1=cell(100), image_run_1=cell(80))],
        OWN: [result(tensor_gRPC_1=cell(99), image_gRPC_1=cell(79))],
        EMPTY: [{"memory_mib": 9.0, "processes": 1, "cells": {"tensor gRPC 1": cell(500)}}],
    }
    run = {
        "commit": "abc1234",
        "machine": {"cores": 2, "cpu": "a CPU"},
        "settings": {"rounds": 1, "seconds": 3.0, "in_flight": [1]},
        "versions": {"onnxruntime": "1.0"},
        "servers": {"cnnserve": {"cnnserve": "2.0"}, "mosec": {"mosec": "3.0", "onnxruntime": "0.9"}},
        "models": {"resnet18": {"results": results, "not_run": {"mosec": "it ended: no"}}},
    }
    (tmp_path / "peers-20260101-000000.json").write_text(json.dumps(run))
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    shown = page.rendered("before\n<!-- peers: from bench/results -->\nold\n<!-- end of peers -->\nafter\n")
    assert "old" not in shown
    assert shown.startswith("before\n<!-- peers: from bench/results -->\n")
    assert shown.endswith("<!-- end of peers -->\nafter\n")
    assert "cnnserve 2.0, mosec 3.0; ONNX Runtime 1.0 (mosec: 0.9)." in " ".join(shown.split())
    assert "| 1 | cnnserve gRPC | 99.0 | 0.99 |" in shown
    assert "| 1 | no model gRPC | 500 | - |" in shown
    assert "mosec did not run: `it ended: no`" in shown
    assert page.rendered(shown) == shown


def inputs() -> Inputs:
    expected = {"tensor": np.array([[0.25, 0.75]], np.float32), "image": np.array([[0.5, 0.5]], np.float32)}
    return Inputs("m", Path(), "image", (2, 2, 3), 2, (bytes(12),), (b"jpeg",), expected, 1.0)


def text_of(row: NDArray[np.float32]) -> str:
    return base64.b64encode(row.tobytes()).decode()


def test_every_way_reads_the_probabilities_of_its_response() -> None:
    row = np.array([0.25, 0.75], np.float32)
    infer = oip.ModelInferResponse(raw_output_contents=[row.tobytes()])
    typed = oip.ModelInferResponse()
    typed.outputs.add().contents.fp32_contents.extend(row)
    classes = [classifier_pb2.Class(index=1, probability=0.75)]
    classify = classifier_pb2.ClassifyResponse(results=[classifier_pb2.ImageResult(classes=classes)])
    text = json.dumps({"results": [{"classes": [{"index": 1, "probability": 0.75}]}]}).encode()
    own = {way.name: way for way in wires.cnnserve(inputs())}
    raw = {way.name: way for way in wires.raw(inputs())}
    for way, body in (
        (own["tensor gRPC"], infer.SerializeToString()),
        (own["tensor gRPC"], typed.SerializeToString()),
        (own["tensor HTTP"], b"{}" + row.tobytes()),
        (raw["tensor HTTP"], row.tobytes()),
        (wires.litserve(inputs())[0], json.dumps({"probabilities": text_of(row)}).encode()),
        (wires.bentoml(inputs())[0], json.dumps([text_of(row)]).encode()),
    ):
        assert not inputs().wrong("tensor", 0, way.read(body))
    for way, body in ((own["image gRPC"], classify.SerializeToString()), (own["image HTTP"], text)):
        # The first class is left out, so only the second one is compared.
        np.testing.assert_array_equal(way.read(body), [np.nan, 0.75])
        assert "differs by 50.0%" in inputs().wrong("image", 0, way.read(body))


def test_responses_without_probabilities_are_wrong() -> None:
    assert "(3,) probabilities instead of (2,)" in inputs().wrong("tensor", 0, np.zeros(3, np.float32))
    assert inputs().wrong("tensor", 0, np.full(2, np.nan, np.float32))
    (way,) = wires.empty(inputs())
    assert inputs().wrong("tensor", 0, np.array([0.25, 0.76], np.float32))
    with pytest.raises(wires.BadResponse):
        way.parsed(b"no message")


@settings(max_examples=20, deadline=None)
@given(st.integers(30, 90), st.integers(30, 90))
@example(500, 375)
@example(640, 427)
def test_peers_get_the_pixels_of_the_server(width: int, height: int) -> None:
    resize = Resize("shorter", (32,), "bilinear", antialias=True)
    spec = Preprocessing("RGB", resize, (28, 28), (0.5,) * 3, (0.5,) * 3, "graph")
    own = Preprocessor(spec, TensorInfo("image", "UINT8", (28, 28, 3), "NHWC"))
    buffer = io.BytesIO()
    shown = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    Image.fromarray(shown).resize((width, height)).save(buffer, "JPEG")
    file = buffer.getvalue()
    np.testing.assert_array_equal(network.pixels(dataclasses.asdict(spec), file), own.encoded(file))


def test_a_tree_has_all_processes_and_ends_whole() -> None:
    # The middle one of three processes ends, and the last one ignores SIGTERM.
    last = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('x', flush=True); time.sleep(600)"
    middle = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {last!r}])"
    first = f"import subprocess, sys, time; subprocess.run([sys.executable, '-c', {middle!r}]); time.sleep(600)"
    with processes.started([sys.executable, "-c", first], os.environ) as server:
        end = time.monotonic() + HANG_S
        while (server.last_words(), len(server.pids)) != ("x", 2):
            assert time.monotonic() < end
            time.sleep(0.01)
        pids = server.pids
        assert server.memory_mib() > 1
    # They have ended, and are gone as soon as init has seen it.
    while any(processes.tree(pid) for pid in pids):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_every_peer_has_a_server_and_a_pinned_version() -> None:
    servers = BENCH / "peers" / "servers"
    assert {path.name for path in servers.glob("*_server.py")} == {peer.script for peer in PEERS.values()}
    for peer in PEERS.values():
        assert all("==" in package for package in peer.packages)
        assert peer.wire in wires.WIRES
        compile((servers / peer.script).read_text(), peer.script, "exec")


def test_a_run_without_peers_compares_with_plain_and_with_no_model(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCH / "peers" / "run.py"), "--models", "lenet5", "--peers", ""]
    command += ["--rounds", "1", "--seconds", "0.1", "--in-flight", "2", "--repository", str(REPOSITORY)]
    environment = {**os.environ, "CNNSERVE_BENCH_RESULTS": str(tmp_path)}
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=HANG_S, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = tmp_path.glob("peers-*.json")
    measured = json.loads(file.read_text())["models"]["lenet5"]
    assert measured["not_run"] == {}
    assert {name: sorted(rounds[0]["cells"]) for name, rounds in measured["results"].items()} == {
        PLAIN: ["tensor run 2"],
        OWN: ["tensor HTTP 2", "tensor gRPC 2"],
        EMPTY: ["tensor gRPC 2"],
    }
    own = measured["results"][OWN][0]
    assert own["start_s"] > 0
    assert own["memory_mib"] > 10
    for each in own["cells"].values():
        assert each["failed"] == 0
        assert each["images_per_s"] > 0
    for name in (PLAIN, OWN, EMPTY):
        assert name in done.stdout
