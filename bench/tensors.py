"""Large tensors to a model that costs nothing: images of 224 × 224 pixels over each gRPC transport, in turns.

The network looks at 49 pixels of an image, so that what is measured is the way of 150,528 bytes an image from the
client to the model. The empty servicer, which only parses the same messages, is the floor of `grpc.aio`.

    python bench/tensors.py --rounds 3 --seconds 3
"""

import argparse
import contextlib
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import harness
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

MODEL = "costless"
SIDE = 224
CLASSES = 10
MB_PER_IMAGE = SIDE * SIDE * 3 / 1e6
# Images in a request, requests in flight.
SHAPES = ((1, 1), (1, 16), (32, 1), (32, 4))


def main() -> int:
    """Runs the benchmark and returns 0."""
    parser = argparse.ArgumentParser(description="Measure large tensors to a model that costs nothing.")
    harness.add_rounds(parser, 3, 3.0)
    options = parser.parse_args()
    cells: defaultdict[str, list[dict[str, float]]] = defaultdict(list)
    with (
        costless_model() as repository,
        harness.serving(repository, "--grpc-transport", "core") as core,
        harness.serving(repository, "--grpc-transport", "aio") as aio,
        harness.empty_server() as empty,
    ):
        servers = {"core": core, "aio": aio, "empty": empty}
        manifest = harness.manifest_of(repository, MODEL)
        for number in range(options.rounds):
            for images, in_flight in SHAPES:
                request = harness.infer_request(manifest, MODEL, images)
                harness.check_answer(core, request)
                for name in harness.in_turn(servers, number):
                    server = servers[name]
                    measured = harness.load(
                        server.address,
                        [request.SerializeToString()],
                        in_flight=in_flight,
                        seconds=options.seconds,
                        server_pid=server.pid,
                        warm_up_s=min(1.0, options.seconds),
                    )
                    cells[f"{name} {images} {in_flight}"].append(_of_images(measured, images))
    summary = {name: harness.medians(runs) for name, runs in cells.items()}
    _print(summary)
    harness.write_result("tensors", {"settings": vars(options), "cells": summary})
    return 0


@contextlib.contextmanager
def costless_model() -> Iterator[Path]:
    """Yields a model repository with a classifier of 224 × 224 images that reads 49 pixels of each."""
    with tempfile.TemporaryDirectory(prefix="cnnserve-bench-") as folder:
        file = Path(folder) / f"{MODEL}.onnx"
        onnx.save(_network(), file)
        repository = Path(folder) / "models"
        command = [sys.executable, "-m", "cnnserve", "import", str(file), "--repository", str(repository)]
        subprocess.run(command, check=True, capture_output=True, timeout=600)
        yield repository


def _network() -> onnx.ModelProto:
    """Returns a network that multiplies every 32nd pixel of every 32nd row with a seeded matrix."""
    pixels = (SIDE // 32) ** 2 * 3
    weights = np.random.default_rng(0).normal(0, 1e-3, (pixels, CLASSES)).astype(np.float32)
    constants = {"first": [0, 0], "end": [SIDE, SIDE], "axes": [1, 2], "steps": [32, 32]}
    nodes = [
        helper.make_node("Slice", ["image", *constants], ["few"]),
        helper.make_node("Cast", ["few"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["floats"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        MODEL,
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", CLASSES])],
        [
            numpy_helper.from_array(weights, "weights"),
            *(numpy_helper.from_array(np.array(values, np.int64), name) for name, values in constants.items()),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _of_images(measured: dict[str, float], images: int) -> dict[str, float]:
    rate = measured["rate"] * images
    cost = {"images_s": rate, "mb_s": rate * MB_PER_IMAGE, "cpu_us_image": measured["server_cpu_us"] / images}
    return measured | cost


def _print(summary: dict[str, dict[str, float]]) -> None:
    rows = [
        [
            *name.split(),
            f"{cell['images_s']:,.0f}",
            f"{cell['mb_s']:,.0f}",
            f"{cell['cpu_us_image']:.0f}",
            f"{cell['p50_ms']:.2f}",
        ]
        for name, cell in summary.items()
    ]
    print(harness.table(["server", "images", "in flight", "images/s", "MB/s", "CPU us/image", "p50 ms"], rows))


if __name__ == "__main__":
    sys.exit(main())
