"""Measures an export of every architecture: size, time, and the differences from PyTorch and from torchvision.

torchvision makes checkpoints with random weights in the form in which it publishes checkpoints. (torchvision has no
LeNet-5; cnnserve's own is exported.) Each checkpoint is exported as `cnnserve export ARCH --weights imagenet` does it.
The published version then classifies three photographs with the server's preprocessing. The time is that of the whole
command without the imports of torch and onnx.

    python bench/export_table.py
"""

import argparse
import contextlib
import importlib.metadata
import io
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness

sys.path.append(str(harness.BENCH.parent / "tests"))

import torchvision_parity
from cnnserve_export.cli import export
from torchvision_parity import NETWORKS, TOLERANCE, Answers


def main() -> int:
    """Runs the benchmark and returns the exit status: 0 if all classes and probabilities are equal to torchvision's."""
    parser = argparse.ArgumentParser(description="Export every architecture and print size, time and differences.")
    harness.add_models(parser, ["lenet5", *NETWORKS])
    parser.add_argument("--max-batch-size", type=int, default=32, help="maximum batch size (default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cnnserve-bench-") as folder:
        checkpoints = Path(folder) / "hub" / "checkpoints"
        checkpoints.mkdir(parents=True)
        networks = [model for model in options.models if model in NETWORKS]
        answers = Answers(checkpoints, {}, {})
        if networks:
            print("torchvision classifies the photographs ...", flush=True)
            answers = torchvision_parity.ask(checkpoints, networks)
        # The first export imports all modules, so it is not measured.
        _measure("lenet5", answers, Path(folder) / "warm-up", 1)
        rows = [_measure(model, answers, Path(folder) / "models", options.max_batch_size) for model in options.models]
    print(_table(rows))
    passed = all(row["torchvision"] is None or (row["torchvision"] < TOLERANCE and row["same_top5"]) for row in rows)
    verdict = harness.verdict(passed=passed)
    print(f"\n  {verdict:<6}  same top-5 as torchvision, probabilities differ by at most {TOLERANCE:.0e}")
    versions = {name: importlib.metadata.version(name) for name in ("torch", "onnx", "onnxscript", "pillow")}
    harness.write_result("export_table", {"export_versions": versions, "tolerance": TOLERANCE, "rows": rows})
    return 0 if passed else 1


def _measure(model: str, answers: Answers, repository: Path, max_batch_size: int) -> dict[str, Any]:
    print(f"exporting {model} ...", flush=True)
    began = time.perf_counter()
    # The command prints the folder of the published version, which is not wanted here.
    with contextlib.redirect_stdout(io.StringIO()):
        if model in NETWORKS:
            torchvision_parity.export_published(model, answers, repository, max_batch_size)
        elif export([model, "--repository", str(repository), "--max-batch-size", str(max_batch_size)]):
            raise SystemExit(f"the export of {model} failed")
    seconds = time.perf_counter() - began
    manifest = harness.manifest_of(repository, model)
    version = repository / model / "1"
    found = torchvision_parity.compare(version, answers.probabilities(model)) if model in NETWORKS else None
    return {
        "model": model,
        "parameters": manifest.parameters,
        "parity": manifest.parity.batches,
        "torchvision": found and found.difference,
        "same_top5": found and found.served.tolist() == found.expected.tolist(),
        "onnx_bytes": (version / manifest.onnx.file).stat().st_size,
        "export_s": seconds,
    }


def _table(rows: list[dict[str, Any]]) -> str:
    # All rows have the same batch sizes: they follow from the maximum.
    batches = [f"batch {size}" for size in rows[0]["parity"]]
    head = ["", "parameters", *batches, "torchvision", "top-5", "ONNX MB", "export s"]
    cells = [
        [
            row["model"],
            f"{row['parameters']:,}",
            *(f"{value:.1e}" for value in row["parity"].values()),
            "" if row["torchvision"] is None else f"{row['torchvision']:.1e}",
            {None: "", True: "same", False: "OTHER"}[row["same_top5"]],
            f"{row['onnx_bytes'] / 1e6:.1f}",
            f"{row['export_s']:.1f}",
        ]
        for row in rows
    ]
    title = "largest difference of a probability from PyTorch by batch size, and from torchvision's network"
    return f"\n{title}\n\n" + harness.table(head, cells)


if __name__ == "__main__":
    sys.exit(main())
