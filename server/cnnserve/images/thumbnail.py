"""Makes small pictures of images, for people to look at."""

import io
from dataclasses import dataclass

from PIL import Image

from cnnserve.errors import InvalidInput
from cnnserve.images.decoding import decode
from cnnserve.images.header import check_structure, read_header

_PIXEL_LIMIT = 50_000_000
# Small images stay as they are: JPEG would blur them, and their PNGs are small.
_EXACT_PIXELS = 64 * 64
_JPEG_QUALITY = 85


@dataclass(frozen=True)
class Thumbnail:
    """A small picture: its media type, the bytes of its file, and its size in pixels. It has no metadata."""

    media_type: str
    data: bytes
    width: int
    height: int


def thumbnail(data: bytes, side: int) -> Thumbnail:
    """Returns a picture of the whole image, upright, at most `side` pixels wide and high. Raises `InvalidInput`.

    A small image is not enlarged.
    """
    header = read_header(data)
    if header.pixels > _PIXEL_LIMIT:
        raise InvalidInput(f"the image has {header.pixels:,} pixels, a thumbnail is made of at most {_PIXEL_LIMIT:,}")
    check_structure(header, data, _PIXEL_LIMIT)
    picture = decode(data, header, "RGB", upright=True, at_least=(side, side)).image
    picture.thumbnail((side, side), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    # A new image, because Pillow would write the metadata of the old one.
    bare = Image.frombytes("RGB", picture.size, picture.tobytes())
    if bare.width * bare.height <= _EXACT_PIXELS:
        bare.save(file, "PNG", optimize=True)
        return Thumbnail("image/png", file.getvalue(), *bare.size)
    bare.save(file, "JPEG", quality=_JPEG_QUALITY)
    return Thumbnail("image/jpeg", file.getvalue(), *bare.size)
