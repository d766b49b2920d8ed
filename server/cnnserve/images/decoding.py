"""From a file's bytes to an upright picture in RGB or grey, with the bits that Pillow gives."""

import io
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np

# Imported for what they register: Pillow would look for plugins at the first image, which takes 40 ms.
from PIL import (  # noqa: F401
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    WebPImagePlugin,
)

from cnnserve.errors import InvalidInput
from cnnserve.images.header import ImageHeader
from cnnserve.images.resampling import Box, Size

Mode = Literal["L", "RGB"]

# Our own limit is tighter and answers the caller; Pillow's would only warn.
Image.MAX_IMAGE_PIXELS = None
# Odd metadata in somebody's file is nothing for the server's log.
warnings.filterwarnings("ignore", module=r"PIL\.")

_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Rows become columns; the right edge becomes the left one; the lower edge becomes the upper one.
_TURNED = (5, 6, 7, 8)
_FROM_RIGHT = (2, 3, 6, 7)
_FROM_BELOW = (3, 4, 7, 8)


@dataclass(frozen=True)
class Decoded:
    """A picture, the `size` (width, height) that it has in full, and the `box` of `image` that it fills.

    What a JPEG is decoded to is rounded up to whole pixels, of which the last ones reach beyond the picture.
    """

    image: Image.Image
    size: Size
    box: Box


def decode(data: bytes, header: ImageHeader, mode: Mode, *, upright: bool, at_least: Size | None = None) -> Decoded:
    """The first picture of a file in `mode`. Raises `InvalidInput`.

    `upright`: turned as its EXIF data say. `at_least` (width, height): a large JPEG may come smaller than its size, but
    not smaller than this.
    """
    try:
        with Image.open(io.BytesIO(data), formats=(header.format,)) as image:
            if image.size != (header.width, header.height):
                raise InvalidInput(
                    f"the image is damaged: its size is {header.width}x{header.height} or {image.width}x{image.height}"
                )
            size, extent = image.size, _draft(image, upright, at_least)
            image.load()
            # Only now: a PNG may tell its orientation behind the pixels.
            orientation = _orientation(image) if upright else 1
            picture: Image.Image = image
            if (method := _TRANSPOSES.get(orientation)) is not None:
                picture = image.transpose(method)
            if orientation in _TURNED:
                size, extent = size[::-1], extent[::-1]
            return Decoded(to_mode(picture, mode), size, _box(picture.size, extent, orientation))
    except InvalidInput:
        raise
    except MemoryError as error:
        raise InvalidInput("the image needs more memory than there is") from error
    except Exception as error:
        # Pillow's plugins raise OSError, ValueError, SyntaxError, struct.error, ... on damaged files.
        raise InvalidInput(f"the image is damaged: {error}") from error


def to_mode(image: Image.Image, mode: Mode) -> Image.Image:
    """RGB or grey as Pillow's `convert` does it, but 16-bit grey keeps its high byte, where Pillow clips it at 255."""
    if image.mode == mode:
        return image
    if image.mode.startswith("I;16"):
        # As Pillow reads 16-bit colour.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    # The colours stay what they are; Pillow would warn of what is lost.
    image.info.pop("transparency", None)
    return image.convert(mode)


def _draft(image: ImageFile.ImageFile, upright: bool, at_least: Size | None) -> tuple[float, float]:
    """Has a large JPEG decoded at 1/2, 1/4 or 1/8 of its size; returns the width and height that this gives it."""
    if at_least is None:
        return image.size
    if upright and _orientation(image) in _TURNED:
        at_least = at_least[::-1]
    # None for every other format.
    drafted = image.draft(image.mode, at_least)
    return image.size if drafted is None else drafted[1][2:]


def _box(decoded: Size, extent: tuple[float, float], orientation: int) -> Box:
    """Where in `decoded` (width, height) the picture of `extent` lies, both turned; the excess was right and below."""
    width, height = extent
    left = decoded[0] - width if orientation in _FROM_RIGHT else 0.0
    top = decoded[1] - height if orientation in _FROM_BELOW else 0.0
    return left, top, left + width, top + height


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        # A picture with broken EXIF data is a picture.
        return 1
    return orientation if isinstance(orientation, int) else 1
