"""From a file's bytes to an upright picture in RGB or grey, with the bits that Pillow gives.

JPEGs go through simplejpeg, which wraps the same libjpeg-turbo with the same settings and copies less; what it does not
take without a complaint, Pillow decodes or refuses.
"""

import io
import math
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
import simplejpeg

# Imported for what they register: Pillow would look for plugins at the first image, which takes 40 ms.
from PIL import (  # noqa: F401
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
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
# Smaller steps of the DCT's scaling save nothing.
_MIN_FACTOR = 2
# libjpeg-turbo's scales are eighths.
_EIGHTHS = (1, 2, 3, 4)


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
            # A JPEG's pixels come from elsewhere; a PNG may tell its orientation behind the pixels.
            picture = _jpeg(data, image, upright, at_least) if header.format == "JPEG" else None
            if picture is None:
                image.load()
                picture = image
            orientation = _orientation(image) if upright else 1
            if (method := _TRANSPOSES.get(orientation)) is not None:
                picture = picture.transpose(method)
            size = image.size[::-1] if orientation in _TURNED else image.size
            return Decoded(to_mode(picture, mode), size, _box(picture.size, size, orientation))
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


def _jpeg(data: bytes, image: Image.Image, upright: bool, at_least: Size | None) -> Image.Image | None:
    """The picture through simplejpeg, or None where Pillow has to say what it is."""
    if image.mode not in ("L", "RGB"):
        return None
    width, height = at_least or (0, 0)
    if upright and at_least and _orientation(image) in _TURNED:
        width, height = height, width
    try:
        # Four bytes a pixel, as Pillow keeps RGB: it is one plain copy then.
        pixels = simplejpeg.decode_jpeg(
            data,
            "GRAY" if image.mode == "L" else "RGBX",
            min_width=width,
            min_height=height,
            min_factor=_MIN_FACTOR,
        )
    except ValueError:
        return None
    size = (pixels.shape[1], pixels.shape[0])
    return Image.frombytes(image.mode, size, pixels, "raw", "L" if image.mode == "L" else "RGBX", 0, 1)


def _box(decoded: Size, size: Size, orientation: int) -> Box:
    """Where in `decoded` (width, height) the picture lies, both turned already; the excess was right and below."""
    width, height = _extent(decoded, size)
    left = decoded[0] - width if orientation in _FROM_RIGHT else 0.0
    top = decoded[1] - height if orientation in _FROM_BELOW else 0.0
    return left, top, left + width, top + height


def _extent(decoded: Size, size: Size) -> tuple[float, float]:
    """Width and height before they were rounded up."""
    if decoded != size:
        for eighths in _EIGHTHS:
            if decoded == (math.ceil(size[0] * eighths / 8), math.ceil(size[1] * eighths / 8)):
                return size[0] * eighths / 8, size[1] * eighths / 8
    return decoded


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        # A picture with broken EXIF data is a picture.
        return 1
    return orientation if isinstance(orientation, int) else 1
