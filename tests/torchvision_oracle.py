"""The process in which torchvision runs: makes checkpoints as torchvision publishes them, and classifies photographs.

python tests/torchvision_oracle.py FOLDER resnet18 resnet50
"""

import argparse
import hashlib
import importlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from torchvision_parity import ANSWERS, NETWORKS, photographs

# The statistics of batch normalisation come from the photographs and this many images of noise.
_NOISE = 5
_LOGITS_STD = 2.5
_DAMPING = 0.3


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("networks", nargs="+", choices=NETWORKS)
    options = parser.parse_args()
    models = _torchvision_models()
    checkpoints = {name: _answer(models, name, options.folder) for name in options.networks}
    metadata = {name: _metadata(models, name) for name in NETWORKS}
    answers = json.dumps({"checkpoints": checkpoints, "metadata": metadata})
    (options.folder / ANSWERS).write_text(answers)


def _torchvision_models() -> Any:
    register = torch.library.register_fake

    def register_known(op: Any, *arguments: Any, **options: Any) -> Any:
        # torchvision's compiled operators need the torch for which torchvision was built. No classifier uses them.
        if isinstance(op, str) and op.startswith("torchvision::"):
            return lambda function: function
        return register(op, *arguments, **options)

    torch.library.register_fake = register_known
    return importlib.import_module("torchvision.models")


def _metadata(models: Any, name: str) -> list[dict[str, Any]]:
    found = []
    for weights in getattr(models, f"{NETWORKS[name]}_Weights"):
        transforms = weights.transforms()
        found.append(
            {
                "edition": weights.name,
                "default": weights == type(weights).DEFAULT,
                "url": weights.url,
                "categories": weights.meta["categories"],
                "parameters": weights.meta["num_params"],
                "resize": transforms.resize_size,
                "crop": transforms.crop_size,
                "mean": transforms.mean,
                "std": transforms.std,
                "interpolation": transforms.interpolation.value,
                "antialias": transforms.antialias,
            }
        )
    return found


def _answer(models: Any, name: str, folder: Path) -> str:
    """Writes the checkpoint of a random network and its probabilities. Returns the name of the checkpoint."""
    torch.manual_seed(0)
    # The network that `weights=` would make, but with the auxiliary heads that the published file has.
    googlenet = {"aux_logits": True, "transform_input": True, "init_weights": False} if name == "googlenet" else {}
    network = getattr(models, name)(**googlenet)
    transforms = getattr(models, f"{NETWORKS[name]}_Weights").DEFAULT.transforms()
    with torch.inference_mode():
        images = torch.stack([transforms(Image.open(path).convert("RGB")) for path in photographs()])
        randomise(network, images)
        expected = torch.softmax(network.eval()(images), 1)
    np.save(folder / f"{name}.npy", expected.numpy())
    return _save(network.state_dict(), name, folder)


def randomise(network: Any, images: Any) -> None:
    """Sets random weights so that images have different probabilities, and each image prefers some classes.

    In these two respects, the network is like a trained one.
    """
    network.eval()
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.1)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            # One pass in training mode sets the running statistics to those of the batch.
            module.momentum = 1.0
            module.train()
    for name, module in network.named_modules():
        # The output of a bottleneck must be small compared with its shortcut. Otherwise a hundred bottlenecks would
        # amplify rounding errors.
        if name.endswith(".bn3"):
            module.weight *= _DAMPING
    network(torch.cat([images, torch.randn(_NOISE, *images.shape[1:])]))
    # The logits may have any scale so far. With this standard deviation the softmax prefers some classes, but gives
    # none a probability of almost 1.
    head = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    scale = _LOGITS_STD / network.eval()(images).std()
    head.weight *= scale
    head.bias *= scale


def _save(state: dict[str, Any], name: str, folder: Path) -> str:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    file = f"{name}-{hashlib.sha256(data).hexdigest()[:8]}.pth"
    (folder / file).write_bytes(data)
    return file


if __name__ == "__main__":
    main()
