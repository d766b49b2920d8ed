"""What a change costs: this checkout beside another one, in turns, on the same model versions.

LeNet-5 over unary gRPC, a gRPC stream and HTTP, ResNet-18 with tensors and with JPEGs. The other checkout exports the
models, because a newer server serves versions of an older exporter, and not the other way round.

    git worktree add ../before COMMIT
    python bench/before.py ../before --rounds 3 --seconds 4
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import harness
import numpy as np
from harness import LOAD, Server
from PIL import Image

from cnnserve.wire import classifier_pb2

_CLASSIFY = "cnnserve.v1.Classifier/Classify"
_STREAM = "inference.GRPCInferenceService/ModelStreamInfer"
_PHOTO = (500, 375)


def main() -> int:
    """Runs the benchmark and returns 0."""
    parser = argparse.ArgumentParser(description="Compare this checkout with another one.")
    parser.add_argument("checkout", type=Path, help="folder of the other checkout")
    parser.add_argument("--models", type=lambda value: value.split(","), default=["lenet5", "resnet18"])
    harness.add_rounds(parser, 3, 4.0)
    harness.add_repository(parser)
    options = parser.parse_args()
    results: defaultdict[str, dict[str, list[dict[str, float]]]] = defaultdict(lambda: {"before": [], "now": []})
    with (
        harness.exported(options.models, options.repository, options.checkout) as root,
        harness.only(options.models, root) as repository,
        harness.serving(repository, checkout=options.checkout) as other,
        harness.serving(repository) as own,
        tempfile.TemporaryDirectory(prefix="cnnserve-before-") as folder,
    ):
        servers = {"before": other, "now": own}
        commands = {name: _commands(server, repository, options, Path(folder)) for name, server in servers.items()}
        for number in range(options.rounds):
            for cell in commands["now"]:
                for name in harness.in_turn(servers, number):
                    results[cell][name].append(_run(commands[name][cell]))
    summary = {cell: {name: harness.medians(runs) for name, runs in sides.items()} for cell, sides in results.items()}
    rows = []
    for cell, sides in summary.items():
        before, now = sides["before"], sides["now"]
        ratios = [f"{now[key] / before[key]:.2f}" for key in ("rate", "p50_ms", "p99_ms", "server_cpu_us")]
        rows.append([cell, *ratios, f"{before['rate']:,.0f}", f"{now['rate']:,.0f}"])
    print("now / before, and requests/s of both")
    print(harness.table(["cell", "rate", "p50", "p99", "CPU", "before", "now"], rows))
    settings = {"rounds": options.rounds, "seconds": options.seconds, "before": _commit(options.checkout)}
    harness.write_result("before", {"settings": settings, "cells": summary})
    return 0


def _commands(server: Server, repository: Path, options: argparse.Namespace, folder: Path) -> dict[str, list[str]]:
    """Returns the load generator's command for each cell."""
    http = "127.0.0.1:" + server.wait_for(r"HTTP port (\d+)")[1][1]
    load = [*LOAD, "--server-pid", str(server.pid), "--seconds", str(options.seconds)]
    load += ["--warm-up-s", str(min(1.0, options.seconds))]
    commands = {}
    for model in options.models:
        request = harness.infer_request(harness.manifest_of(repository, model), model)
        harness.check_answer(server, request)
        files = {
            "request": request.SerializeToString(),
            "tensor": request.raw_input_contents[0],
            "photo": _photo(model),
        }
        for name, data in files.items():
            (folder / f"{model}-{name}").write_bytes(data)
        body = {name: ["--body", str(folder / f"{model}-{name}")] for name in files}
        for count in (1, 16, 64) if model == "lenet5" else (1, 16):
            in_flight = ["--in-flight", str(count)]
            commands[f"{model} unary {count}"] = [
                *load, server.address, "--method", harness.INFER, *body["request"], *in_flight
            ]  # fmt: skip
        commands[f"{model} stream 16"] = [
            *load, server.address, "--method", _STREAM, "--streaming", *body["request"], "--in-flight", "16"
        ]  # fmt: skip
        path = ["--http-path", f"/v2/models/{model}/infer", "--header", "Inference-Header-Content-Length: 0"]
        commands[f"{model} HTTP 16"] = [*load, http, *path, *body["tensor"], "--in-flight", "16"]
        commands[f"{model} JPEG 16"] = [
            *load, server.address, "--method", _CLASSIFY, *body["photo"], "--in-flight", "16"
        ]  # fmt: skip
    return commands


def _photo(model: str) -> bytes:
    """Returns a Classify request with one JPEG of a usual size, of smooth noise."""
    small = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize(_PHOTO, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return classifier_pb2.ClassifyRequest(
        model=model, images=[classifier_pb2.Image(encoded=buffer.getvalue())]
    ).SerializeToString()


def _run(command: list[str]) -> dict[str, float]:
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    if result["failed"]:
        raise SystemExit(f"{result['failed']} requests failed: {command}")
    return {name: value for name, value in result.items() if isinstance(value, int | float)}


def _commit(checkout: Path) -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=checkout, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
