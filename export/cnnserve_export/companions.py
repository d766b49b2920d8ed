"""The files beside the model in a version folder, and the software that made it; exports and imports share them."""

import platform
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

import cnnserve
from cnnserve.repository.manifest import PROBABILITIES_FILE, golden_bytes
from cnnserve.runtime.session import runtime_version
from cnnserve_export import labels
from cnnserve_export.golden import GoldenImages


def write(folder: Path, images: GoldenImages, probabilities: NDArray[np.float32], names: Sequence[str] | None) -> None:
    """Writes golden images and their probabilities and, if `names` is not None, the label file into `folder`."""
    for name, data in images.items():
        (folder / name).write_bytes(data)
    (folder / PROBABILITIES_FILE).write_bytes(golden_bytes(probabilities))
    if names is not None:
        (folder / labels.LABELS_FILE).write_text(labels.render(names), encoding="utf-8", newline="\n")


def producer(**others: str) -> dict[str, str]:
    """Returns the versions of the software that made the model, for the manifest."""
    return {
        "cnnserve": cnnserve.__version__,
        "python": platform.python_version(),
        **others,
        "onnx": onnx.__version__,
        "onnxruntime": runtime_version(),
    }
