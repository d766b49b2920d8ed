"""Measures by how much probabilities and their logarithms differ between two correct ways to compute with fewer bits.

- tf32: each factor of a convolution or a linear layer is rounded to 11 significant bits, as TF32 does, against fp32.
- fp16: PyTorch computes every layer in half precision, as a GPU does, against the published file on the CPU, which
  computes in fp32 with rounded weights.
- int8: the published file (weights of 7 bits) without any optimisation of ONNX Runtime against all of them, so that
  floats land on the other side of a rounding step.

The images are the built-in golden images and others. Probabilities below 6e-5 count as 6e-5. Target: all differences
are within the tolerances of the server.

    python bench/reduced_precision.py --models lenet5,resnet18,efficientnet_lite0
"""

import argparse
import copy
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import golden_set
import harness
import machine
import numpy as np
import onnxruntime
import torch
from golden_set import Subject
from numpy.typing import NDArray
from torch import Tensor, nn

from cnnserve.images.preprocessing import Preprocessor
from cnnserve.model.comparison import REDUCED_FLOOR
from cnnserve.repository.manifest import LOG_TOLERANCES, TOLERANCES
from cnnserve.runtime.session import Session
from cnnserve_export import calibration, checkpoints, contract, convert, golden, golden_choice, images, quantize
from cnnserve_export.architectures import ARCHITECTURES, IMAGENET

PRECISIONS = ("tf32", "fp16", "int8")


def main() -> int:
    """Runs the measurement and returns the exit status: 0 if every difference is within the tolerances."""
    parser = argparse.ArgumentParser(description="Measure the differences between ways to compute with fewer bits.")
    harness.add_models(parser, ["lenet5", "resnet18", "efficientnet_lite0"])
    options = parser.parse_args()
    torch.set_num_threads(machine.cores())
    results = {}
    passed = True
    for name in options.models:
        with tempfile.TemporaryDirectory(prefix="cnnserve-bench-") as folder:
            results[name] = measure(subject(name), Path(folder))
        for precision, found in results[name].items():
            passed &= report(name, precision, found)
    harness.write_result("reduced_precision", {"models": results})
    return 0 if passed else 1


def subject(name: str) -> Subject:
    """Returns a trained network, or a ResNet-18 with random weights."""
    if name == "lenet5":
        return golden_set.lenet5(None)
    trained = golden_set.efficientnet_lite0(None)
    if name == "efficientnet_lite0":
        return trained
    network = checkpoints.build(ARCHITECTURES[name], 1000)
    return Subject(network, IMAGENET, golden.photograph(), dict(golden_choice.photographs()), trained.probes)


def measure(subject: Subject, folder: Path) -> dict[str, dict[str, Any]]:
    """Returns the largest differences for each precision."""
    network = subject.network
    classes = int(list(network.parameters())[-1].shape[0])
    made = contract.contract(subject.preprocessing, "float32", classes)
    preprocessor = Preprocessor(made.preprocessing, made.input)
    files = [subject.old, *subject.images.values(), *subject.probes]
    rows = np.stack([preprocessor.encoded(file) for file in files])
    expected = golden_set.answers(network, torch.from_numpy(rows))
    with tf32(network):
        reduced = golden_set.answers(network, torch.from_numpy(rows))
    found = {"tf32": differences(reduced, expected)}

    model, prepared = folder / "model.onnx", folder / "prepared.onnx"
    convert.to_onnx(network, made, model)
    quantize.prepare(model, prepared)
    quantize.to_fp16(prepared, folder / "fp16.onnx")
    half = copy.deepcopy(network).half()
    with torch.inference_mode():
        logits = torch.cat([half(part).float() for part in torch.from_numpy(rows).half().split(8)])
    found["fp16"] = differences(logits.double().softmax(1).numpy(), alone(Session(folder / "fp16.onnx").run, rows))

    ranges = calibration.ranges(prepared, quantize.OPERATORS, images.built_in(), preprocessor, lambda *_: None)
    quantize.to_int8(prepared, folder / "int8.onnx", ranges, 7)
    plain = onnxruntime.SessionOptions()
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    other = onnxruntime.InferenceSession(folder / "int8.onnx", plain, providers=["CPUExecutionProvider"])
    name = other.get_inputs()[0].name
    found["int8"] = differences(
        alone(lambda row: other.run(None, {name: row}), rows), alone(Session(folder / "int8.onnx").run, rows)
    )
    return found


def alone(run: Any, rows: NDArray[np.generic]) -> NDArray[np.float64]:
    """Returns the probabilities of each row, which runs alone."""
    return np.concatenate([run(row[np.newaxis])[0] for row in rows]).astype(np.float64)


@contextmanager
def tf32(network: nn.Module) -> Iterator[None]:
    """Rounds the factors of all convolutions and linear layers to 11 significant bits for a while."""
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    hooks = [layer.register_forward_pre_hook(lambda _, inputs: tuple(map(rounded, inputs))) for layer in layers]
    with torch.no_grad():
        for layer in layers:
            layer.weight.copy_(rounded(layer.weight))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        network.load_state_dict(before)


def rounded(values: Tensor) -> Tensor:
    """Returns float32 values with 10 bits behind the first one."""
    bits = values.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


def differences(one: NDArray[np.float64], other: NDArray[np.float64]) -> dict[str, Any]:
    """Returns the largest differences of a probability and of its logarithm."""
    logs = np.abs(np.log(np.maximum(one, REDUCED_FLOOR)) - np.log(np.maximum(other, REDUCED_FLOOR)))
    same = (one.argmax(axis=1) == other.argmax(axis=1)).mean()
    return {
        "images": len(one),
        "probability": float(np.abs(one - other).max()),
        "log": float(logs.max()),
        "log, median of the images": float(np.median(logs.max(axis=1))),
        "same top class": float(same),
    }


def report(name: str, precision: str, found: dict[str, Any]) -> bool:
    """Prints the differences and returns whether they are within the tolerances."""
    key = "int8" if precision == "int8" else "fp16"
    passed = found["probability"] <= TOLERANCES[key] and found["log"] <= LOG_TOLERANCES[key]
    print(
        f"  {harness.verdict(passed=passed):<6}  {name} {precision}: a probability differs by up to "
        f"{found['probability']:.1e} (allowed {TOLERANCES[key]:.0e}), its logarithm by up to {found['log']:.2g} "
        f"(allowed {LOG_TOLERANCES[key]:g}; median of {found['images']} images "
        f"{found['log, median of the images']:.2g}), same top class for {found['same top class']:.0%}"
    )
    return passed


if __name__ == "__main__":
    sys.path.insert(0, str(golden_set.ROOT))
    sys.exit(main())
