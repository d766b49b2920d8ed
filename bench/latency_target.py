"""Goodput in open loop: a model with `cnnserve.target_p99_ms` beside fixed settings, at rates around the knee.

Requests arrive at random (Poisson), whether or not the server keeps up. Goodput is the number of answers within the
target per second. The rates are shares of what the server answers with 16 requests in flight.

    python bench/latency_target.py --models resnet18,alexnet --target-ms 300 --seconds 20
"""

import argparse
import contextlib
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import harness
from harness import Server, median
from machine import cores

from cnnserve.batching.percentile import percentile
from cnnserve.wire import open_inference_pb2 as pb

LOADS = (0.6, 0.8, 1.0, 1.2, 1.5)
# Above the knee, and below it: the target must not cost anything there.
ABOVE, BELOW = 1.0, 0.95
# Batches of the fixed settings: the default, and smaller ones, which shorten the wait behind a run.
BATCHES = (1, 4, 0)
IN_FLIGHT = 16

Cell = dict[str, float]


def main() -> int:
    """Runs the benchmark and returns the exit status: 0 if the target wins at every rate above the knee."""
    parser = argparse.ArgumentParser(description="Measure the goodput with a latency target and with fixed settings.")
    harness.add_models(parser, ["resnet18", "alexnet"])
    harness.add_rounds(parser, 2, 15.0)
    harness.add_repository(parser)
    parser.add_argument("--target-ms", type=float, default=300.0, help="latency target in ms (default: %(default)s)")
    options = parser.parse_args()
    results: dict[str, Any] = {}
    passed = True
    with harness.exported(options.models, options.repository) as root:
        for model in options.models:
            results[model] = _measure(root, model, options)
            passed = _print(model, results[model]) and passed
    harness.write_result("latency_target", {"target_ms": options.target_ms, "seconds": options.seconds, **results})
    return 0 if passed else 1


def _measure(root: Path, model: str, options: argparse.Namespace) -> dict[str, Any]:
    body = harness.infer_request(harness.manifest_of(root, model), model).SerializeToString()
    settings = {_name(batch): (batch, 0.0) for batch in BATCHES} | {"target": (0, options.target_ms)}
    cells: dict[str, dict[str, list[Cell]]] = {str(load): {name: [] for name in settings} for load in LOADS}
    capacity = 0.0
    for number in range(options.rounds):
        for name in harness.in_turn(settings, number):
            with _server(root, model, *settings[name]) as server:
                # The server learns its run times here.
                closed = harness.load(
                    server.address, [body], in_flight=IN_FLIGHT, seconds=min(4, options.seconds), warm_up_s=0.2
                )
                capacity = capacity or closed["rate"]
                for load in LOADS:
                    rate = load * capacity
                    cell = _open_loop(server, body, rate, options.target_ms, seconds=options.seconds, seed=number)
                    cells[str(load)][name].append(cell)
    return {"capacity": capacity, "cores": cores(), "cells": cells}


def _name(batch: int) -> str:
    return f"batches of at most {batch}" if batch else "default"


@contextlib.contextmanager
def _server(root: Path, model: str, batch: int, target_ms: float) -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="cnnserve-bench-") as folder:
        copy = shutil.copytree(root / model, Path(folder) / model)
        config = copy / "config.pbtxt"
        lines = [line for line in config.read_text().splitlines() if not (batch and line.startswith("max_batch_size"))]
        if batch:
            lines.append(f"max_batch_size: {batch}")
        if target_ms:
            lines.append(f'parameters {{ key: "cnnserve.target_p99_ms" value {{ string_value: "{target_ms}" }} }}')
        config.write_text("\n".join(lines) + "\n")
        with harness.serving(Path(folder)) as server:
            yield server


def _open_loop(server: Server, body: bytes, rate: float, target_ms: float, *, seconds: float, seed: int) -> Cell:
    """Sends requests at random times and returns what became of them, after all have ended."""
    chance = random.Random(seed)
    latencies: list[float] = []
    failed: list[float] = []
    left = threading.Semaphore(0)
    with grpc.insecure_channel(server.address) as channel:
        grpc.channel_ready_future(channel).result(harness.START_S)
        call = channel.unary_unary(f"/{harness.INFER}", response_deserializer=pb.ModelInferResponse.FromString)
        began = due = time.perf_counter()
        sent = 0
        while due < began + seconds:
            time.sleep(max(0.0, due - time.perf_counter()))

            # From the time when the request was due, so that a late generator hides nothing.
            def done(future: Any, due: float = due) -> None:
                (failed if future.exception() else latencies).append((time.perf_counter() - due) * 1e3)
                left.release()

            call.future(body, timeout=60).add_done_callback(done)
            sent += 1
            due += chance.expovariate(rate)
        for _ in range(sent):
            left.acquire()
    within = sum(latency <= target_ms for latency in latencies)
    ordered = sorted(latencies) or [0.0]
    return {
        "rate": sent / seconds,
        "goodput": within / seconds,
        "late": len(latencies) - within,
        "refused": len(failed),
        "p50_ms": percentile(ordered, 50),
        "p99_ms": percentile(ordered, 99),
        "refused_p50_ms": median(failed) if failed else 0.0,
    }


def _print(model: str, result: dict[str, Any]) -> bool:
    print(f"\n{model}, {result['cores']} threads, {result['capacity']:.1f}/s with {IN_FLIGHT} in flight")
    rows, verdicts = [], []
    for load, cells in result["cells"].items():
        values = {name: harness.medians(runs) for name, runs in cells.items()}
        own = values["target"]["goodput"]
        best = max(cell["goodput"] for name, cell in values.items() if name != "target")
        verdicts.append((own > best if float(load) > ABOVE else own >= BELOW * best, load, own, best))
        for name, cell in values.items():
            numbers = [f"{cell[key]:,.1f}" for key in ("rate", "goodput", "late", "refused", "p99_ms")]
            rows.append([f"{load} {name}", *numbers])
    print(harness.table(["load", "sent/s", "goodput/s", "late", "refused", "p99 ms"], rows))
    for good, load, own, best in verdicts:
        word = harness.verdict(passed=good)
        print(f"  {word:<6}  load {load}: goodput {own:,.1f}/s, the best fixed settings {best:,.1f}/s")
    sys.stdout.flush()
    return all(good for good, *_ in verdicts)


if __name__ == "__main__":
    sys.exit(main())
