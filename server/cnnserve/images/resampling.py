"""A bilinear resize that is quicker than Pillow's and may be one step of 255 off, by the same filter.

cykooz_resizer computes with the processor's vector instructions: with the copies there and back it takes a third of
Pillow's time. It has no wheels for some machines the server runs on; without it Pillow does the work. So it does where
the filter is bicubic: that one reaches beyond black and white, the two libraries run their passes in another order and
clip elsewhere, and drawings and text came out up to 28 steps apart.
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
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
_PIXEL_TYPES = {"L": "U8", "RGB": "U8x4"}
# Pillow keeps RGB in four bytes: so it is a plain copy, there and back.
_RAW_MODES = {"L": "L", "RGB": "RGBX"}


def resized(image: Image.Image, size: Size, interpolation: str, box: Box) -> Image.Image:
    """The `box` (left, top, right, bottom) of an L or RGB image at `size` (width, height)."""
    resizer = library() if interpolation == "bilinear" else None
    if resizer is None or _is_as_large(box, size):
        # Where nothing is to be resized, Pillow only crops.
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
    # One for each call: they may not be shared by threads, and cost nothing.
    resizer.Resizer().resize(source, target, options)
    return Image.frombytes(image.mode, size, target.get_buffer(), "raw", raw, 0, 1)


@functools.cache
def library() -> ModuleType | None:
    """cykooz_resizer, where it is installed; it takes 40 ms to import."""
    try:
        return importlib.import_module("cykooz_resizer")
    except ImportError as error:
        _log.info(
            "cykooz-resizer cannot be used (%s), so cnnserve.preprocess fast resizes with Pillow; "
            'pip install "cnnserve[fast]" installs it where it has wheels',
            error,
        )
        return None


def _is_as_large(box: Box, size: Size) -> bool:
    return (box[2] - box[0], box[3] - box[1]) == size


def _inside(size: Size, box: Box) -> Box:
    """Left, top, width and height of a box: rounding must not put its edge outside, which would be refused."""
    left, top = max(0.0, box[0]), max(0.0, box[1])
    return left, top, _length(left, box[2], size[0]), _length(top, box[3], size[1])


def _length(start: float, end: float, most: int) -> float:
    length = min(end, most) - start
    return length if start + length <= most else math.nextafter(length, 0)
