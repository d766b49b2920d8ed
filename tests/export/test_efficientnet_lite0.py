"""EfficientNet-Lite0 with its ImageNet weights, exported with the flags for them, against its own code in PyTorch."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cnnserve.images.preprocessing import Preprocessor
from cnnserve.repository import manifest as manifests
from cnnserve.runtime.session import Session
from cnnserve_export.cli import export

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("efficientnet_lite_pytorch") is None, reason="needs the extra examples; make setup"
    ),
]

ROOT = Path(__file__).parents[2]
PHOTOGRAPHS = sorted((ROOT / "examples" / "photographs").glob("*.jpg"))
# Trained in TensorFlow on (pixel - 127) / 128.
FLAGS = "--scale 1 --mean 127,127,127 --std 128,128,128 --crop-pct 0.875 --interpolation bicubic"


def own_code(path: Path) -> np.ndarray:
    """What the package's network returns for an image, prepared with Pillow alone."""
    from examples.efficientnet_lite0 import efficientnet_lite0  # noqa: PLC0415

    image = Image.open(path).convert("RGB")
    width, height = image.size
    size = (256, int(256 * height / width)) if width <= height else (int(256 * width / height), 256)
    image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = round((size[0] - 224) / 2), round((size[1] - 224) / 2)
    pixels = np.asarray(image.crop((left, top, left + 224, top + 224)), np.float32)
    values = torch.from_numpy((pixels - 127) / 128).permute(2, 0, 1)[None]
    with torch.inference_mode():
        probabilities: np.ndarray = torch.softmax(efficientnet_lite0().eval()(values), 1)[0].numpy()
    return probabilities


def test_every_probability_is_that_of_its_own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    command = f"examples.efficientnet_lite0:efficientnet_lite0 --shape 3,224,224 {FLAGS} --labels imagenet"
    assert export([*command.split(), "--repository", str(tmp_path), "--max-batch-size", "3"]) == 0
    version = tmp_path / "efficientnet_lite0" / "1"
    manifest = manifests.read(version)
    assert manifest is not None
    preprocessor = Preprocessor(manifest.preprocessing, manifest.input)
    rows = np.stack([preprocessor.encoded(path.read_bytes()) for path in PHOTOGRAPHS])
    served = Session(version / manifest.onnx.file).run(rows)[0]
    expected = np.stack([own_code(path) for path in PHOTOGRAPHS])
    assert np.abs(served - expected).max() < 1e-4
    assert (np.argsort(-served)[:, :5] == np.argsort(-expected)[:, :5]).all()
    assert expected.max(axis=1).min() > 0.2
