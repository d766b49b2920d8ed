"""What every server is sent, and what plain ONNX Runtime makes of it."""

import io
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from peers.servers.network import Network

# Of JPEGs, width and height: the mean of ImageNet's photographs, and the size of COCO's.
SIZES = ((500, 375), (640, 427))
_QUALITY = 90
_TENSORS = 4
# Of a probability, with `_SMALLEST` added to it: batches and other thread counts add up in other orders.
_TOLERANCE = 1e-2
_SMALLEST = 1e-5
_DECODE_S = 0.5


@dataclass(frozen=True)
class Inputs:
    """The inputs of one model. `expected` has the probabilities of the tensors and of the images, by kind.

    `images` is empty for networks of grey images. `decode_ms`: CPU time from an image file to pixels, with Pillow.
    """

    model: str
    folder: Path
    input_name: str
    shape: tuple[int, ...]
    classes: int
    tensors: tuple[bytes, ...]
    images: tuple[bytes, ...]
    expected: dict[str, NDArray[np.float32]]
    decode_ms: float

    def wrong(self, kind: str, number: int, rows: NDArray[np.float32]) -> str:
        """Returns what is wrong with the probabilities for one of the inputs, "" if nothing is.

        NaN: the response left that class out.
        """
        expected = self.expected[kind][number]
        if rows.shape != expected.shape:
            return f"{rows.shape} probabilities instead of {expected.shape}"
        known = ~np.isnan(rows)
        if not known.any():
            return "no probability is a number"
        difference = float(np.max(np.abs(rows - expected)[known] / (expected[known] + _SMALLEST)))
        return "" if difference <= _TOLERANCE else f"a probability differs by {difference:.1%} from plain ONNX Runtime"


def prepare(folder: Path, model: str, threads: int) -> Inputs:
    """Returns the inputs of version 1 of a model."""
    network = Network(folder / model / "1", threads)
    generator = np.random.default_rng(0)
    tensors = [_blurred(generator, network.shape) for _ in range(_TENSORS)]
    images = photographs() if network.takes_photographs else ()
    rows = {"tensor": tensors, "image": [network.row(image) for image in images]}
    # One by one, as requests are.
    expected = {kind: np.array([network.run([row])[0] for row in each]) for kind, each in rows.items()}
    inputs = Inputs(
        model=model,
        folder=folder / model / "1",
        input_name=network.name,
        shape=network.shape,
        classes=network.classes,
        tensors=tuple(tensor.tobytes() for tensor in tensors),
        images=images,
        expected=expected,
        decode_ms=_decode_ms(network, images),
    )
    for kind, each in expected.items():
        if len(each) and not inputs.wrong(kind, 0, each[-1]):
            raise SystemExit(f"{model} returns the same for two {kind}s, so nobody could see that a server is wrong")
    return inputs


def photographs() -> tuple[bytes, ...]:
    """Returns JPEGs of two photographs in each of `SIZES`."""
    from sklearn.datasets import load_sample_image  # noqa: PLC0415 - takes a second

    files = []
    for name in ("china", "flower"):
        for size in SIZES:
            buffer = io.BytesIO()
            image = Image.fromarray(load_sample_image(f"{name}.jpg")).resize(size, Image.Resampling.LANCZOS)
            image.save(buffer, "JPEG", quality=_QUALITY)
            files.append(buffer.getvalue())
    return tuple(files)


def _blurred(generator: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Returns random pixels that differ in more than noise, which networks average away."""
    few = generator.integers(0, 256, (4, 4, shape[2]), np.uint8)
    image = Image.fromarray(few.squeeze()).resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(shape)


def _decode_ms(network: Network, images: tuple[bytes, ...]) -> float:
    if not images:
        return 0.0
    count, began = 0, time.process_time()
    while (elapsed := time.process_time() - began) < _DECODE_S:
        for image in images:
            network.row(image)
        count += len(images)
    return elapsed / count * 1e3
