"""Decodes a file into an RGB or grey image and turns it upright. The pixels are exactly those that Pillow gives."""

import io
import logging
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np

# Importing a plugin registers it. Otherwise Pillow would search for plugins at the first image, which takes 40 ms.
from PIL import (  # noqa: F401
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from cnnserve.errors import InvalidInput
from cnnserve.images.header import ImageHeader
from cnnserve.images.resampling import Box, Size
from cnnserve.process.redaction import redacted

_log = logging.getLogger(__name__)

Mode = Literal["L", "RGB"]

# The preprocessor has a limit of its own, which a model can change. Pillow would warn or fail at a fixed limit.
Image.MAX_IMAGE_PIXELS = None
# Pillow warns of invalid metadata. Clients send such files, and the server's log should not have a line for each.
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
# Orientations that swap width and height, that move the right edge to the left, that move the lower edge to the top.
_TURNED = (5, 6, 7, 8)
_FROM_RIGHT = (2, 3, 6, 7)
_FROM_BELOW = (3, 4, 7, 8)


@dataclass(frozen=True)
class Decoded:
    """A decoded image, its `size` (width, height) at full resolution, and the `box` of `image` that holds its pixels.

    If a JPEG is decoded at a fraction of its size, its size is rounded up to whole pixels. `box` leaves out what the
    rounding added.
    """

    image: Image.Image
    size: Size
    box: Box


def decode(data: bytes, header: ImageHeader, mode: Mode, *, upright: bool, at_least: Size | None = None) -> Decoded:
    """Decodes the first image of a file into `mode`. Raises `InvalidInput`.

    `upright`: turn the image as its EXIF orientation says. `at_least` (width, height): a large JPEG may be decoded at a
    fraction of its size, but not smaller than this.
    """
    try:
        with Image.open(io.BytesIO(data), formats=(header.format,)) as image:
            if image.size != (header.width, header.height):
                raise InvalidInput(
                    f"the image is damaged: it states two sizes, {header.width}x{header.height} and "
                    f"{image.width}x{image.height}"
                )
            size, extent = image.size, _draft(image, upright, at_least)
            image.load()
            # A PNG may state its orientation after the pixels, so the orientation is read after them.
            orientation = _orientation(image) if upright else 1
            picture: Image.Image = image
            if (method := _TRANSPOSES.get(orientation)) is not None:
                picture = image.transpose(method)
            if orientation in _TURNED:
                size, extent = size[::-1], extent[::-1]
            return Decoded(to_mode(picture, mode), size, _box(picture.size, extent, orientation))
    except InvalidInput:
        raise
    except UnidentifiedImageError as error:
        # Its text has the address of an object.
        raise InvalidInput(f"the image is damaged: the header of the {header.format} cannot be read") from error
    except MemoryError as error:
        raise InvalidInput("the server has too little memory to decode the image; send a smaller image") from error
    except Exception as error:
        # For damaged files, Pillow's plugins raise OSError, ValueError, SyntaxError, struct.error and others.
        _log.debug("an image could not be decoded", exc_info=error)
        raise InvalidInput(f"the image is damaged: {redacted(str(error))}") from error


def to_mode(image: Image.Image, mode: Mode) -> Image.Image:
    """Converts an image to RGB or grey as Pillow's `convert` does, except that 16-bit grey keeps its high byte.

    Pillow would clip 16-bit grey at 255, so that almost every pixel would be white.
    """
    if image.mode == mode:
        return image
    if image.mode.startswith("I;16"):
        # Pillow does the same with 16-bit colour.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    # A transparent colour changes no pixel here. Pillow would try to convert it, and warn if it cannot.
    image.info.pop("transparency", None)
    return image.convert(mode)


def _draft(image: ImageFile.ImageFile, upright: bool, at_least: Size | None) -> tuple[float, float]:
    """Lets Pillow decode a large JPEG at 1/2, 1/4 or 1/8 of its size.

    Returns the width and height that the image then has, before they are rounded up.
    """
    if at_least is None:
        return image.size
    if upright and _orientation(image) in _TURNED:
        at_least = at_least[::-1]
    # For other formats, `draft` does nothing and returns None.
    drafted = image.draft(image.mode, at_least)
    return image.size if drafted is None else drafted[1][2:]


def _box(decoded: Size, extent: tuple[float, float], orientation: int) -> Box:
    """Returns the part of an image of size `decoded` that holds an image of size `extent`. Both are turned already.

    Before turning, rounding added pixels at the right and below.
    """
    width, height = extent
    left = decoded[0] - width if orientation in _FROM_RIGHT else 0.0
    top = decoded[1] - height if orientation in _FROM_BELOW else 0.0
    return left, top, left + width, top + height


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        # An image with broken EXIF data can still be decoded.
        return 1
    return orientation if isinstance(orientation, int) else 1
