"""Compares the probabilities of published versions with torchvision's.

cnnserve does not need torchvision, and torch's exporter behaves differently if torchvision is installed. So `make
setup` puts torchvision into a folder of its own, and it runs in a process of its own, `torchvision_oracle.py`.
"""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import matplotlib as mpl
import numpy as np
import sklearn.datasets
from numpy.typing import NDArray

from cnnserve.images.preprocessing import Preprocessor
from cnnserve.repository import manifest as manifests
from cnnserve.runtime.session import Session
from cnnserve_export import hub
from cnnserve_export.cli import export

FOLDER = Path(sys.prefix) / "torchvision"
NETWORKS = {
    "alexnet": "AlexNet",
    "googlenet": "GoogLeNet",
    "resnet18": "ResNet18",
    "resnet34": "ResNet34",
    "resnet50": "ResNet50",
    "resnet101": "ResNet101",
    "resnet152": "ResNet152",
}
TOP = 5
TOLERANCE = 1e-4
ANSWERS = "answers.json"
ORACLE = Path(__file__).with_name("torchvision_oracle.py")


@dataclass(frozen=True)
class Answers:
    """torchvision's results. `checkpoints` are files in `folder`, in the published form, but with random weights."""

    folder: Path
    metadata: dict[str, list[dict[str, Any]]]
    checkpoints: dict[str, str]

    def published(self, network: str) -> hub.Published:
        """Returns the table's entry of torchvision's default weights, with this checkpoint as the published file."""
        url = (self.folder / self.checkpoints[network]).as_uri()
        return dataclasses.replace(hub.find(network, "imagenet"), url=url)

    def probabilities(self, network: str) -> NDArray[np.float32]:
        """Returns the probabilities, with shape (photographs, classes)."""
        values: NDArray[np.float32] = np.load(self.folder / f"{network}.npy")
        return values


def photographs() -> list[Path]:
    """Returns three real photographs, JPEG files that scikit-learn and matplotlib contain."""
    images = Path(sklearn.datasets.__file__).parent / "images"
    samples = Path(mpl.get_data_path()) / "sample_data"
    return [images / "china.jpg", images / "flower.jpg", samples / "grace_hopper.jpg"]


def ask(folder: Path, networks: Sequence[str] = tuple(NETWORKS)) -> Answers:
    """Makes torchvision write checkpoints to `folder` and classify the photographs with them. Returns its results."""
    if not (FOLDER / "torchvision").is_dir():
        raise FileNotFoundError(f"torchvision is not in {FOLDER}; make setup installs it there")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(FOLDER), os.getenv("PYTHONPATH"))))}
    command = [sys.executable, str(ORACLE), str(folder), *networks]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"the oracle failed:\n{done.stderr}")
    found = json.loads((folder / ANSWERS).read_text())
    return Answers(folder, found["metadata"], found["checkpoints"])


def export_published(network: str, answers: Answers, repository: Path, max_batch_size: int) -> Path:
    """Runs `cnnserve export NETWORK --weights imagenet` and returns the version folder.

    The checkpoint is taken for the published file, which is in torch's cache already. So `answers.folder` must have the
    name of a folder in torch's cache: .../hub/checkpoints.
    """
    flags = ["--weights", "imagenet", "--repository", str(repository), "--max-batch-size", str(max_batch_size)]
    with (
        mock.patch.object(hub, "PUBLISHED", (answers.published(network),)),
        mock.patch.dict(os.environ, TORCH_HOME=str(answers.folder.parent.parent)),
    ):
        status = export([network, *flags])
    if status:
        raise RuntimeError(f"the export of {network} ended with status {status}")
    return repository / network / "1"


@dataclass(frozen=True)
class Comparison:
    """The largest difference of a probability, and the five most probable classes, each of shape (photographs, 5)."""

    difference: float
    served: NDArray[np.intp]
    expected: NDArray[np.intp]


def compare(version: Path, expected: NDArray[np.float32]) -> Comparison:
    """Classifies the photographs with a published version as the server does, and compares with `expected`."""
    manifest = manifests.read(version)
    assert manifest is not None
    preprocessor = Preprocessor(manifest.preprocessing, manifest.input)
    rows = np.stack([preprocessor.encoded(path.read_bytes()) for path in photographs()])
    actual = Session(version / manifest.onnx.file).run(rows)[0]
    return Comparison(float(np.abs(actual - expected).max()), _best(actual), _best(expected))


def _best(probabilities: NDArray[np.float32]) -> NDArray[np.intp]:
    return np.argsort(-probabilities, axis=1)[:, :TOP]
