"""Small pictures of images for people."""

import io

import numpy as np
import pytest
from PIL import Image

from cnnserve.errors import InvalidInput
from cnnserve.images.thumbnail import thumbnail
from support import png


def test_a_large_image_becomes_a_small_upright_jpeg_without_metadata() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (900, 600, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "where it was taken"
    file = io.BytesIO()
    image.save(file, "JPEG", exif=exif)
    small = thumbnail(file.getvalue(), 112)
    assert (small.media_type, small.width, small.height) == ("image/jpeg", 112, 75)
    with Image.open(io.BytesIO(small.data)) as found:
        assert found.size == (112, 75)
        assert not found.getexif()
    assert b"where it was taken" not in small.data


def test_a_tiny_image_keeps_its_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
    small = thumbnail(png(pixels), 112)
    assert (small.media_type, small.width, small.height) == ("image/png", 8, 8)
    assert (np.asarray(Image.open(io.BytesIO(small.data))) == pixels).all()


@pytest.mark.parametrize("data", [b"", b"no image", png(np.zeros((8, 8), np.uint8))[:40]])
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput):
        thumbnail(data, 112)


def test_an_image_of_too_many_pixels_is_not_decoded() -> None:
    data = bytearray(png(np.zeros((8, 8), np.uint8)))
    data[16:24] = (100_000).to_bytes(4, "big") * 2
    with pytest.raises(InvalidInput, match="10,000,000,000 pixels"):
        thumbnail(bytes(data), 112)
