"""The part that all peers share: one ONNX file with the same threads, and the same pixels of an image.

Each peer's environment has numpy, onnxruntime and Pillow, but not cnnserve.
"""

import argparse
import io
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from PIL import Image

MAX_BATCH = 32
PATH = "/infer"
# Peers start processes of their own, which read what to serve from here.
FOLDER, THREADS = "BENCH_FOLDER", "BENCH_THREADS"


class Network:
    """A version of a model: takes the bytes of tensors and image files, returns probabilities."""

    def __init__(self, folder: Path, threads: int) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        file = folder / manifest["onnx"]["file"]
        self._session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self._preprocessing = manifest["preprocessing"]
        self.name: str = manifest["input"]["name"]
        self.shape: tuple[int, ...] = tuple(manifest["input"]["shape"])
        self.classes: int = manifest["output"]["shape"][0]

    @property
    def takes_photographs(self) -> bool:
        """Whether the images are in colour."""
        return self.shape[-1] == 3

    def is_tensor(self, body: bytes) -> bool:
        """Returns whether the body of a request has the bytes of a tensor; if not, it is an image file."""
        return len(body) == math.prod(self.shape)

    def row(self, body: bytes) -> NDArray[np.uint8]:
        """Returns the input for the body of a request."""
        if self.is_tensor(body):
            return np.frombuffer(body, np.uint8).reshape(self.shape)
        return pixels(self._preprocessing, body).reshape(self.shape)

    def run(self, rows: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Returns the probabilities of a batch of rows."""
        answer: NDArray[np.float32] = self._session.run(None, {self.name: np.stack(rows)})[0]
        return answer


def pixels(spec: dict[str, Any], file: bytes) -> NDArray[np.uint8]:
    """Returns the pixels of an image file, resized and cropped as torchvision does it."""
    image = Image.open(io.BytesIO(file)).convert(spec["color"])
    width, height = image.size
    side = spec["resize"]["size"][0]
    if spec["resize"]["mode"] == "exact":
        width, height = spec["resize"]["size"][1], side
    elif width <= height:
        width, height = side, side * height // width
    else:
        width, height = side * width // height, side
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    if spec["crop"]:
        rows, columns = spec["crop"]
        left, top = round((width - columns) / 2), round((height - rows) / 2)
        image = image.crop((left, top, left + columns, top + rows))
    return np.asarray(image)


def options(about: str | None) -> argparse.Namespace:
    """Returns the flags of a peer's server, and leaves what to serve to the processes that it starts."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("folder", type=Path, help="folder of a version of a model")
    parser.add_argument("--port", type=int, required=True, help="port on 127.0.0.1")
    parser.add_argument("--threads", type=int, required=True, help="threads of a run")
    parsed = parser.parse_args()
    os.environ[FOLDER], os.environ[THREADS] = str(parsed.folder), str(parsed.threads)
    return parsed


def network() -> Network:
    """Returns the network that `options` was asked to serve, also in a process that the server started."""
    return Network(Path(os.environ[FOLDER]), int(os.environ[THREADS]))
