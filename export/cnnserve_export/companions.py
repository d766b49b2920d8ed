"""The files beside the model in a version folder, and the software that made it; exports and imports share them."""

import platform
from collections.abc import Sequence
from pathlib import Path

import onnx

import cnnserve
from cnnserve.runtime.session import runtime_version
from cnnserve_export import labels
from cnnserve_export.golden import GOLDEN_FILE


def write(folder: Path, golden_png: bytes, names: Sequence[str] | None) -> None:
    """Writes the golden image and, if `names` is not None, the label file into `folder`."""
    (folder / GOLDEN_FILE).write_bytes(golden_png)
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
