"""Networks of timm, as a person names them: `cnnserve export timm_networks:NAME`. timm lies in a folder of its own.

As a program, this file writes what timm itself says: `python tests/timm_networks.py FOLDER` makes a checkpoint of
random weights, a config, and probabilities of photographs for each network.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from torchvision_oracle import randomise
from torchvision_parity import photographs
from torchvision_pixels import FOLDER, TIMM, load_timm, load_transforms

# What differs from the network's own config, so that every way to crop is among them.
CHANGES: dict[str, dict[str, Any]] = {
    "mobilenetv3_small_050": {},
    "convnext_atto": {"crop_pct": 0.95},
    "regnety_002": {"crop_mode": "squash", "crop_pct": 0.9},
    "ghostnet_100": {"crop_mode": "border", "interpolation": "lanczos"},
    "tf_efficientnet_lite0": {"input_size": [3, 192, 224]},
}


def _made(name: str) -> nn.Module:
    load_transforms()
    network: nn.Module = load_timm().create_model(name, pretrained=False)
    return network.eval()


def mobilenetv3_small_050() -> nn.Module:
    return _made("mobilenetv3_small_050")


def convnext_atto() -> nn.Module:
    return _made("convnext_atto")


def regnety_002() -> nn.Module:
    return _made("regnety_002")


def ghostnet_100() -> nn.Module:
    return _made("ghostnet_100")


def tf_efficientnet_lite0() -> nn.Module:
    return _made("tf_efficientnet_lite0")


def ask(folder: Path) -> None:
    """Has timm write NAME.pth, NAME.json and NAME.npy for each of `CHANGES`."""
    for needed in (FOLDER, TIMM):
        if not needed.is_dir():
            raise FileNotFoundError(f"there is no {needed}; make setup installs it")
    subprocess.run([sys.executable, "-W", "ignore", __file__, str(folder)], check=True, capture_output=True, text=True)


def _answer(name: str, folder: Path) -> None:
    torch.manual_seed(0)
    network = _made(name)
    config = {**network.pretrained_cfg, **CHANGES[name]}
    data = load_timm().data
    transform = data.create_transform(**data.resolve_data_config({}, pretrained_cfg=config))
    with torch.inference_mode():
        images = torch.stack([transform(Image.open(path).convert("RGB")) for path in photographs()])
        randomise(network, images)
        probabilities = torch.softmax(network.eval()(images), 1)
    torch.save(network.state_dict(), folder / f"{name}.pth")
    (folder / f"{name}.json").write_text(json.dumps(config))
    np.save(folder / f"{name}.npy", probabilities.numpy())


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    for each in CHANGES:
        _answer(each, options.folder)
