"""Measures what fp16 and int8 cost in accuracy, and gain in speed, for LeNet-5 and ResNet-18 trained on scanned digits.

The exports are calibrated on the 1,437 training digits and compared on the 360 held-out digits. The accuracy of int8
may be at most half a percentage point below that of fp32. Speeds are those of plain ONNX Runtime on the CPU; the cells
take turns.

    python bench/int8_digits.py --epochs 8 --rounds 3 --seconds 2
"""

import argparse
import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import Any

import harness
import int8
import machine
import torch

from cnnserve.repository.manifest import Preprocessing, Resize
from cnnserve_export import checkpoints, digits, pipeline, precision, train
from cnnserve_export.architectures import ARCHITECTURES, DIGITS
from cnnserve_export.progress import Progress

ALLOWED = 0.005
# ResNet-18 takes colour images, and its stem and stages divide the sides of an image by 32.
COLOUR = Preprocessing(
    color="RGB", resize=Resize("exact", (64, 64)), crop=None, mean=(0.306,) * 3, std=(0.325,) * 3, normalize="graph"
)
RATES = {"lenet5": (DIGITS, 3e-3), "resnet18": (COLOUR, 1e-3)}


def main() -> int:
    """Runs the benchmark and returns the exit status: 0 if the accuracy of int8 is high enough on both networks."""
    parser = argparse.ArgumentParser(description="Train on the digits and compare fp32, fp16 and int8.")
    harness.add_models(parser, list(RATES))
    parser.add_argument("--epochs", type=int, default=8, help="number of epochs of the training (default: %(default)s)")
    harness.add_rounds(parser, 3, seconds=2.0)
    options = parser.parse_args()
    torch.set_num_threads(machine.cores())
    results: dict[str, Any] = {}
    passed = True
    with tempfile.TemporaryDirectory(prefix="cnnserve-bench-") as folder:
        root = Path(folder)
        digits.write_folder(digits.training_digits(), root / "training")
        digits.write_folder(digits.held_out_digits(), root / "held-out")
        for name in options.models:
            versions = publish(root, name, options.epochs)
            result = int8.compare(versions["fp32"], versions["int8"], options.rounds, options.seconds)
            half = harness.manifest_in(versions["fp16"]).agreement
            assert half is not None
            result["fp16"] = dataclasses.asdict(half)
            passed &= int8.report(name, result, 0.0) & _judge(result["agreement"])
            results[name] = result
    harness.write_result("int8_digits", {"epochs": options.epochs, "models": results})
    return 0 if passed else 1


def publish(root: Path, name: str, epochs: int) -> dict[str, Path]:
    """Trains the network, publishes it in every precision and returns the version folders."""
    preprocessing, rate = RATES[name]
    architecture, progress = ARCHITECTURES[name], Progress(sys.stderr)
    network = checkpoints.build(architecture, len(train.LABELS))
    with progress.stage("train") as stage:
        train.fit(
            network,
            *train.rows(digits.training_digits(), preprocessing),
            epochs=epochs,
            peak_rate=rate,
            report=lambda epoch, loss: stage.update(f"epoch {epoch}/{epochs}, loss {loss:.3f}"),
        )
        reached = train.accuracy(network, *train.rows(digits.held_out_digits(), preprocessing))
        stage.finding = f"{name}, {epochs} epochs, {reached:.2%} of the held-out digits right"
    folders = {}
    for wanted, calibration, evaluation in (
        ("fp32", None, None),
        ("fp16", None, root / "held-out"),
        ("int8", root / "training", root / "held-out"),
    ):
        job = pipeline.Export(
            network=network,
            architecture=name,
            class_count=len(train.LABELS),
            preprocessing=preprocessing,
            weights={"source": "trained", "epochs": str(epochs)},
            golden_images=ARCHITECTURES["lenet5"].golden(),
            repository=root / "models",
            name=f"{name}-{wanted}",
            labels=train.LABELS,
            lowering=precision.request(wanted, calibration, evaluation, None),
        )
        folders[wanted] = pipeline.run(job, progress)
    return folders


def _judge(agreement: dict[str, Any]) -> bool:
    lost = agreement["fp32_accuracy"] - agreement["accuracy"]
    print(
        f"  {harness.verdict(passed=lost <= ALLOWED):<6}  accuracy on {agreement['labelled']} held-out digits: "
        f"int8 {agreement['accuracy']:.2%}, fp32 {agreement['fp32_accuracy']:.2%} (int8 may be {ALLOWED:.1%} lower)"
    )
    return bool(lost <= ALLOWED)


if __name__ == "__main__":
    sys.exit(main())
