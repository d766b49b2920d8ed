"""Resizes with cykooz-resizer or Pillow: the same filters, but bilinear results may differ by one step of 255.

cykooz-resizer uses the vector instructions of the processor. It takes a third of Pillow's time, including the copies
from and to Pillow. It has no wheels for some machines on which the server runs. Without it, Pillow resizes.

Pillow always does bicubic resizing. Bicubic values can be below black or above white. The two libraries do their passes
in a different order and clip such values at different points, so drawings and text differed by up to 28 steps.
"""

import functools
import importlib
import logging
import math
from collections.abc import Mapping
from types import ModuleType

from PIL import Image

_log = logging.getLogger(__name__)

# Width and height.
Size = tuple[int, int]
# Left, top, right and bottom.
Box = tuple[float, float, float, float]

PILLOW: Mapping[str, Image.Resampling] = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
# How far a filter reaches to each side, in pixels of the larger image's scale.
SUPPORTS: Mapping[str, float] = {"box": 0.5, "bilinear": 1.0, "hamming": 1.0, "bicubic": 2.0, "lanczos": 3.0}
_PIXEL_TYPES = {"L": "U8", "RGB": "U8x4"}
# Pillow stores an RGB pixel in four bytes. In this form, the copies from and to Pillow need no conversion.
_RAW_MODES = {"L": "L", "RGB": "RGBX"}


def resized(image: Image.Image, size: Size, interpolation: str, box: Box) -> Image.Image:
    """Returns the `box` (left, top, right, bottom) of an L or RGB image, resized to `size` (width, height)."""
    resizer = library() if interpolation == "bilinear" else None
    if resizer is None or _is_as_large(box, size):
        # If the box has the wanted size, Pillow only crops.
        return image.resize(size, PILLOW[interpolation], box)
    pixel_type = resizer.PixelType[_PIXEL_TYPES[image.mode]]
    raw = _RAW_MODES[image.mode]
    target = resizer.ImageData(*size, pixel_type)
    options = resizer.ResizeOptions(
        resizer.ResizeAlg.convolution(resizer.FilterType.bilinear),
        use_alpha=False,
        crop_box=resizer.CropBox(*_inside(image.size, box)),
    )
    source = resizer.ImageData(*image.size, pixel_type, image.tobytes("raw", raw))
    # Threads must not share a Resizer. Creating one costs nothing.
    resizer.Resizer().resize(source, target, options)
    return Image.frombytes(image.mode, size, target.get_buffer(), "raw", raw, 0, 1)


@functools.cache
def library() -> ModuleType | None:
    """Returns the module cykooz_resizer, or None if it cannot be imported. The first call takes 40 ms."""
    try:
        return importlib.import_module("cykooz_resizer")
    except ImportError as error:
        _log.info(
            "cykooz-resizer cannot be imported (%s), so cnnserve.preprocess fast resizes with Pillow, which is slower; "
            'if it has a wheel for this machine, pip install "cnnserve[fast]" installs it',
            error,
        )
        return None


def _is_as_large(box: Box, size: Size) -> bool:
    return (box[2] - box[0], box[3] - box[1]) == size


def _inside(size: Size, box: Box) -> Box:
    """Returns left, top, width and height of a box, rounded so that no edge is outside: the library would refuse it."""
    left, top = max(0.0, box[0]), max(0.0, box[1])
    return left, top, _length(left, box[2], size[0]), _length(top, box[3], size[1])


def _length(start: float, end: float, most: int) -> float:
    length = min(end, most) - start
    return length if start + length <= most else math.nextafter(length, 0)
