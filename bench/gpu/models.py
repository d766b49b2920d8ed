"""Exports all architectures in fp32 and fp16 with weights that compress: a model of 240 MB travels as some hundred KB.

The weights of every layer are one short block of random numbers, repeated and scaled as He et al. do it for random
weights. So neither speed nor numbers differ much from those of random weights, and `xz` stores each block once. The
length of the block is a prime number, so that it fits no filter, and filters differ.

    python bench/gpu/models.py FOLDER --network resnet50
"""

import argparse
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

from cnnserve_export import checkpoints
from cnnserve_export.architectures import ARCHITECTURES

_BLOCK = 4093
# Of networks that are tested, but not measured.
_TESTED_BATCH = 8


def main() -> int:
    """Exports what is missing and returns the exit status."""
    parser = argparse.ArgumentParser(description="Export all architectures with weights that compress.")
    parser.add_argument("folder", type=Path, help="model repository; models that it has are left as they are")
    parser.add_argument("--network", default="resnet50", help="network to measure (default: %(default)s)")
    text = "largest batch of the measured network (default: %(default)s)"
    parser.add_argument("--max-batch-size", type=int, default=128, help=text)
    parser.add_argument(
        "--models",
        type=lambda text: text.split(","),
        default=[*ARCHITECTURES],
        help=f"architectures to export (default: {','.join(ARCHITECTURES)})",
    )
    options = parser.parse_args()
    for name in options.models:
        for precision in ("fp32", "fp16"):
            model = name if precision == "fp32" else f"{name}-{precision}"
            if not (options.folder / model).is_dir():
                print(f"exporting {model} ...", flush=True)
                batch = options.max_batch_size if name == options.network else _TESTED_BATCH
                _export(name, model, precision, batch, options.folder)
    return 0


def repeat_weights(network: nn.Module) -> None:
    """Gives every convolution and linear layer repeated weights with the power of He's initialisation, and no bias."""
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    for number, layer in enumerate(layers):
        block = torch.randn(_BLOCK, generator=torch.Generator().manual_seed(number))
        block = (block - block.mean()) / block.std()
        weight = layer.weight
        with torch.no_grad():
            flat = block.repeat(math.ceil(weight.numel() / _BLOCK))[: weight.numel()]
            weight.copy_(flat.view_as(weight) * math.sqrt(2 / weight[0].numel()))
            if layer.bias is not None:
                layer.bias.zero_()


def _export(name: str, model: str, precision: str, batch: int, folder: Path) -> None:
    architecture = ARCHITECTURES[name]
    network = checkpoints.build(architecture, architecture.class_count)
    repeat_weights(network)
    with tempfile.TemporaryDirectory(prefix="cnnserve-bench-") as scratch:
        weights = Path(scratch) / "repeated.pth"
        torch.save(network.state_dict(), weights)
        command = [sys.executable, "-m", "cnnserve", "export", name, "--name", model, "--repository", str(folder)]
        command += ["--weights", str(weights), "--precision", precision, "--max-batch-size", str(batch)]
        # Of an untrained network, small differences change the largest class.
        command += ["--min-agreement", "0"] if precision == "fp16" else []
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{model} was not exported:\n{done.stderr}")


if __name__ == "__main__":
    sys.exit(main())
