"""What a version folder holds beside the network, and which software made it: the same for an export and an import."""

import platform
from collections.abc import Sequence
from pathlib import Path

import onnx

import cnnserve
from cnnserve.runtime.session import runtime_version
from cnnserve_export import labels
from cnnserve_export.golden import GOLDEN_FILE


def write(folder: Path, golden_png: bytes, names: Sequence[str] | None) -> None:
    """Writes the golden image and, where there are any, the class names."""
    (folder / GOLDEN_FILE).write_bytes(golden_png)
    if names is not None:
        (folder / labels.LABELS_FILE).write_text(labels.render(names), encoding="utf-8", newline="\n")


def producer(**others: str) -> dict[str, str]:
    """The versions of what made the file, for the manifest."""
    return {
        "cnnserve": cnnserve.__version__,
        "python": platform.python_version(),
        **others,
        "onnx": onnx.__version__,
        "onnxruntime": runtime_version(),
    }
