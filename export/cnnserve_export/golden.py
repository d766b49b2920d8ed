"""Makes golden images, which the server repeats before it serves a version, and images to compare networks with."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from cnnserve.images.preprocessing import FORMATS
from cnnserve.repository import manifest as manifests
from cnnserve.repository.manifest import PROBABILITIES_FILE, Golden
from cnnserve_export import files
from cnnserve_export.contract import Precision
from cnnserve_export.errors import ExportError

# The content of each golden image by its file name in the version folder.
GoldenImages = Mapping[str, bytes]

# A handwritten three, scanned for NIST and reduced to 8 x 8 counts of ink from 0 to 16. It is one of the held-out
# images of scikit-learn's `load_digits`, repeated here so that an export does not need scikit-learn.
_DIGIT = (
    (0, 0, 6, 14, 16, 16, 2, 0),
    (0, 5, 16, 13, 11, 16, 0, 0),
    (0, 0, 7, 2, 15, 12, 0, 0),
    (0, 0, 0, 7, 16, 13, 1, 0),
    (0, 0, 0, 0, 6, 15, 10, 0),
    (0, 0, 0, 0, 0, 15, 9, 0),
    (0, 0, 3, 11, 8, 16, 6, 0),
    (0, 0, 7, 16, 16, 8, 0, 0),
)


def single(png: bytes) -> dict[str, bytes]:
    """Returns one golden image under its file name."""
    return {"golden.png": png}


def numbered(pngs: Sequence[bytes]) -> GoldenImages:
    """Returns several golden images under file names that count from 1."""
    return {f"golden-{number}.png": png for number, png in enumerate(pngs, start=1)}


def record(images: GoldenImages, precision: Precision) -> Golden:
    """Returns what the manifest says of golden images, whose probabilities are those of a file of this precision."""
    tolerance, log_tolerance = manifests.TOLERANCES[precision], manifests.LOG_TOLERANCES[precision]
    return Golden((*images,), PROBABILITIES_FILE, tolerance, log_tolerance)


def photograph() -> bytes:
    """Returns a generated image with gradients, texture and shapes as PNG: RGB, width 500 and height 375 pixels."""
    return encode_png(picture(0, 375, 500))


def digit() -> bytes:
    """Returns a real scanned digit as PNG: grey, 8 x 8 pixels."""
    return encode_png(ink_to_pixels(np.array(_DIGIT)))


def from_file(path: Path) -> bytes:
    """Returns the user's image as PNG.

    A PNG file is returned unchanged. Any other image is decoded now and turned upright, because the pixels of a JPEG
    depend on its decoder and a golden image must be the same everywhere.
    Raises `ExportError` if the file cannot be read.
    """
    files.check_plain(path, f"the golden image {path}")
    try:
        with Image.open(path, formats=FORMATS) as image:
            image.load()
            if image.format == "PNG":
                return path.read_bytes()
            upright = ImageOps.exif_transpose(image)
            return _png(upright if upright.mode in ("L", "RGB") else upright.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        # Pillow's decoders raise all three if a file is damaged.
        raise ExportError(f"the golden image {path} cannot be read: {error}") from error


def picture(seed: int, height: int, width: int) -> NDArray[np.uint8]:
    """Returns a generated RGB image (height, width, 3); each `seed` gives another colour, texture and shapes."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j][..., np.newaxis]
    corners = random.uniform(0, 255, (4, 3))
    image = (1 - y) * ((1 - x) * corners[0] + x * corners[1]) + y * ((1 - x) * corners[2] + x * corners[3])
    image = image + 30 * np.sin(x * random.uniform(10, 90, 3) + y * random.uniform(10, 90, 3))
    for _ in range(6):
        centre_y, centre_x, radius = random.uniform(0, 1, 3) * (1, 1, 0.25)
        inside = (y - centre_y) ** 2 + (x - centre_x) ** 2 < radius**2
        image = np.where(inside, random.uniform(0, 255, 3), image)
    pixels: NDArray[np.uint8] = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return pixels


def ink_to_pixels(ink: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Returns grey values from 0 to 255 for scikit-learn's counts of ink from 0 to 16."""
    return np.rint(ink.astype(np.float64) * (255 / 16)).astype(np.uint8)


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Returns grey pixels (height, width) or RGB pixels (height, width, 3) as PNG."""
    return _png(Image.fromarray(pixels))


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
