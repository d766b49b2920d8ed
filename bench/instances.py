"""Compares one instance with all threads, and two instances with half of them each, with plain ONNX Runtime.

16 requests are in flight. Cells of the server and of plain ONNX Runtime take turns; the results are medians over the
rounds. Plain ONNX Runtime is `InferenceSession.run` in a loop with all threads and ONNX Runtime's default spinning. For
information, there is also a cell with two loops, each run with half of the threads.

    python bench/instances.py --models resnet18,resnet50 --rounds 5 --seconds 8
"""

import argparse
import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness
import machine
from harness import Server, Worker, median

IN_FLIGHT = 16
TARGET = 0.95
COUNTS = (1, 2)

Cells = dict[str, list[dict[str, float]]]


def main() -> int:
    """Runs the benchmark and returns the exit status: 0 if every number of instances reached the target."""
    parser = argparse.ArgumentParser(description="Compare one and two instances with plain ONNX Runtime.")
    harness.add_models(parser, ["resnet18", "resnet50"])
    harness.add_rounds(parser, 5, seconds=8.0)
    harness.add_repository(parser)
    options = parser.parse_args()
    results: dict[str, Any] = {}
    passed = True
    with harness.exported(options.models, options.repository) as root:
        for model in options.models:
            cells = _measure(root, model, options)
            results[model] = {"ratios": _ratios(cells), "cells": cells}
            passed &= _print(model, cells)
    harness.write_result("instances", {"in_flight": IN_FLIGHT, "models": results})
    return 0 if passed else 1


def _measure(root: Path, model: str, options: argparse.Namespace) -> Cells:
    threads = machine.cores()
    manifest = harness.manifest_of(root, model)
    request = harness.infer_request(manifest, model)
    onnx = root / model / "1" / manifest.onnx.file
    cells: Cells = {}
    with contextlib.ExitStack() as stack:
        raw = {1: stack.enter_context(Worker("raw.py", onnx, "--threads", str(threads)))}
        raw[2] = stack.enter_context(Worker("raw.py", onnx, "--threads", str(max(1, threads // 2)), "--loops", "2"))
        servers = {count: stack.enter_context(_server(root, model, count)) for count in COUNTS}
        for server in servers.values():
            harness.check_answer(server, request)
        for number in range(options.rounds):
            for count in harness.in_turn(COUNTS, number):
                cell = _load(servers[count], request.SerializeToString(), options.seconds)
                cells.setdefault(f"served, {count} instances", []).append(cell)
                cell = raw[count].ask(batch=1, seconds=options.seconds)
                cells.setdefault(f"raw, {count} loops", []).append(cell)
    return cells


@contextlib.contextmanager
def _server(root: Path, model: str, count: int) -> Iterator[Server]:
    """Yields a server of one model with `count` instances. All other settings are the defaults."""
    with tempfile.TemporaryDirectory(prefix="cnnserve-bench-") as folder:
        copy = shutil.copytree(root / model, Path(folder) / model)
        with (copy / "config.pbtxt").open("a") as config:
            config.write(f"\ninstance_group {{ kind: KIND_CPU count: {count} }}\n")
        with harness.serving(Path(folder)) as server:
            yield server


def _load(server: Server, body: bytes, seconds: float) -> dict[str, float]:
    return harness.load(
        server.address, [body], in_flight=IN_FLIGHT, seconds=seconds, server_pid=server.pid, warm_up_s=2.0
    )


def _ratios(cells: Cells) -> dict[int, float]:
    """Returns the median ratio of the server to the plain loop with all threads, from cells of the same round."""
    plain = cells["raw, 1 loops"]
    return {
        count: median([a["rate"] / b["rate"] for a, b in zip(cells[f"served, {count} instances"], plain, strict=True)])
        for count in COUNTS
    }


def _print(model: str, cells: Cells) -> bool:
    rows = []
    for name, runs in sorted(cells.items(), key=lambda item: item[0], reverse=True):
        values = {key: median([cell[key] for cell in runs]) for key in ("rate", "p50_ms", "p99_ms", "other_cores")}
        rows.append([name, *(f"{value:,.2f}" for value in values.values())])
    print(f"\n{model}, {IN_FLIGHT} in flight, {machine.cores()} threads in total")
    print(harness.table(["cell", "images/s", "p50 ms", "p99 ms", "other cores"], rows))
    ratios = _ratios(cells)
    for count, ratio in ratios.items():
        result = harness.verdict(passed=ratio >= TARGET)
        print(f"  {result:<6}  {count} instances >= {TARGET} times plain ONNX Runtime: {ratio:.3f}")
    sys.stdout.flush()
    return all(ratio >= TARGET for ratio in ratios.values())


if __name__ == "__main__":
    sys.exit(main())
