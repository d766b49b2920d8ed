"""Compares int8 with fp32 in plain ONNX Runtime, with all cores. Cells take turns; results are medians over the rounds.

The weights are random (seeded). The exports are calibrated on crops of three photographs and compared on other crops of
them. Only ResNet-50's speed has a target. The agreement has none, because that of random weights says little.

    python bench/int8.py --models resnet50,resnet18,googlenet --rounds 5 --seconds 4
"""

import argparse
import contextlib
import dataclasses
import io
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import harness
import machine
import matplotlib.cbook
import numpy as np
import onnx
import onnxruntime as ort
from harness import Worker, median
from PIL import Image
from sklearn.datasets import load_sample_image

TARGETS = {"resnet50": 1.7}
BATCHES = (1, 8)
CROPS = 12

Cells = dict[str, list[dict[str, float]]]


def main() -> int:
    """Runs the benchmark and returns the exit status: 0 if the target was reached."""
    parser = argparse.ArgumentParser(description="Compare int8 with fp32 in plain ONNX Runtime.")
    harness.add_models(parser, ["resnet50", "resnet18", "googlenet"])
    harness.add_rounds(parser, 5, seconds=4.0)
    options = parser.parse_args()
    results: dict[str, Any] = {}
    passed = True
    with tempfile.TemporaryDirectory(prefix="cnnserve-bench-") as folder:
        root = Path(folder)
        write_photographs(root / "calibration", seed=0)
        write_photographs(root / "evaluation", seed=1)
        for model in options.models:
            fp32 = export(root / "models", model, f"{model}-fp32", "--precision", "fp32")
            words = ["--calibration", str(root / "calibration"), "--evaluation", str(root / "evaluation")]
            int8 = export(
                root / "models", model, f"{model}-int8", "--precision", "int8", "--min-agreement", "0", *words
            )
            results[model] = compare(fp32, int8, options.rounds, options.seconds)
            passed &= report(model, results[model], TARGETS.get(model, 0.0))
    harness.write_result("int8", {"threads": machine.cores(), "models": results})
    return 0 if passed else 1


def write_photographs(folder: Path, seed: int) -> None:
    """Writes JPEGs: crops of three photographs, with 40 % to 90 % of their sides. Another seed makes other crops."""
    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        portrait = Image.open(file).convert("RGB")
    pictures = [*(Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")), portrait]
    random = np.random.default_rng(seed)
    folder.mkdir()
    for number, picture in enumerate(pictures):
        for crop in range(CROPS):
            width, height = (int(size * random.uniform(0.4, 0.9)) for size in picture.size)
            left, top = random.integers(0, picture.width - width), random.integers(0, picture.height - height)
            buffer = io.BytesIO()
            picture.crop((left, top, left + width, top + height)).save(buffer, "JPEG", quality=92)
            (folder / f"{number}-{crop:02}.jpg").write_bytes(buffer.getvalue())


def export(repository: Path, architecture: str, name: str, *words: str) -> Path:
    """Exports with `cnnserve export` and returns the version folder."""
    command = [sys.executable, "-m", "cnnserve", "export", architecture, "--repository", str(repository)]
    print(f"exporting {name} ...", flush=True)
    done = subprocess.run([*command, "--name", name, *words], check=False, capture_output=True, text=True, timeout=900)
    if done.returncode:
        raise SystemExit(done.stderr)
    return Path(done.stdout.strip())


def compare(fp32: Path, int8: Path, rounds: int, seconds: float) -> dict[str, Any]:
    """Returns the images/s of both versions at each batch size, and the operators and the agreement of int8."""
    threads = str(machine.cores())
    files = {"fp32": fp32 / "model.onnx", "int8": int8 / "model.onnx"}
    cells: Cells = {}
    with contextlib.ExitStack() as stack:
        turns = [
            (name, stack.enter_context(Worker("raw.py", path, "--threads", threads))) for name, path in files.items()
        ]
        for batch in BATCHES:
            for number in range(rounds):
                for precision, worker in harness.in_turn(turns, number):
                    cell = worker.ask(batch=batch, seconds=seconds)
                    cells.setdefault(f"{precision}, batch {batch}", []).append(cell)
    manifest = harness.manifest_in(int8)
    assert manifest.agreement is not None
    return {
        "speed_up": {str(batch): _speed_up(cells, batch) for batch in BATCHES},
        "megabytes": {precision: path.stat().st_size / 1e6 for precision, path in files.items()},
        "operators": operators(files["int8"]),
        "agreement": dataclasses.asdict(manifest.agreement),
        "cells": cells,
    }


def _speed_up(cells: Cells, batch: int) -> float:
    """Returns the median ratio of int8 to fp32. A ratio compares cells of one round."""
    pairs = zip(cells[f"int8, batch {batch}"], cells[f"fp32, batch {batch}"], strict=True)
    return median([a["rate"] / b["rate"] for a, b in pairs])


def operators(model: Path) -> dict[str, int]:
    """Returns the number of nodes by operator, after ONNX Runtime has optimised the file."""
    with tempfile.TemporaryDirectory(prefix="cnnserve-bench-") as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        nodes = onnx.load(options.optimized_model_filepath).graph.node
    return dict(Counter(node.op_type for node in nodes).most_common())


def report(model: str, result: dict[str, Any], target: float) -> bool:
    """Prints a model's result. Returns whether the target was reached and no convolution is left in float."""
    rows = []
    for name, runs in result["cells"].items():
        values = [median([cell[key] for cell in runs]) for key in ("rate", "p50_ms", "other_cores")]
        rows.append([name, *(f"{value:,.2f}" for value in values)])
    print(f"\n{model}, plain ONNX Runtime, {machine.cores()} threads")
    print(harness.table(["cell", "images/s", "p50 ms", "other cores"], rows))
    counts, agreement = result["operators"], result["agreement"]
    print("  nodes: " + ", ".join(f"{count} {name}" for name, count in counts.items()))
    print(
        f"  same class as fp32: {agreement['top1']:.2%} of {agreement['images']['count']} images, "
        f"largest difference of a probability {agreement['largest_difference']:.1e}"
    )
    passed = "Conv" not in counts
    for batch, ratio in result["speed_up"].items():
        passed &= ratio >= target
        verdict = f"{harness.verdict(passed=ratio >= target)}, target {target}" if target else "for information"
        print(f"  batch {batch}: int8 reaches {ratio:.2f} times the images/s of fp32 ({verdict})")
    sys.stdout.flush()
    return passed


if __name__ == "__main__":
    sys.exit(main())
