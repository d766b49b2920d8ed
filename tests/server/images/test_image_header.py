"""Sizes from the headers of image files, and files that are made to cost more than their headers declare."""

import io
import struct
import time
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from cnnserve.errors import InvalidInput
from cnnserve.images.decoding import decode
from cnnserve.images.header import read_header
from cnnserve.images.preprocessing import ImageOptions, Preprocessor
from cnnserve.repository.manifest import Preprocessing, Resize, TensorInfo
from support import png

SPEC = Preprocessing("RGB", Resize("shorter", (64,)), (56, 56), (0.0,) * 3, (1.0,) * 3, "graph")
EXACT_SIZE = Preprocessing("L", Resize("exact", (28, 28)), None, (0.0,), (1.0,), "graph")


def read(data: bytes, spec: Preprocessing = SPEC, pixel_limit: int = 50_000_000) -> np.ndarray:
    tensor = TensorInfo("image", "UINT8", (28, 28, 1) if spec.color == "L" else (56, 56, 3), "NHWC")
    return Preprocessor(spec, tensor, ImageOptions(pixel_limit=pixel_limit)).encoded(data)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture(width: int = 37, height: int = 21) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


PNG = png(np.zeros((4, 4), np.uint8))
HEADER_END = 33
GIF = saved(picture().quantize(8), "GIF")
GIF_PALETTE_END = 13 + (3 << (GIF[10] & 7) + 1)


@pytest.mark.parametrize("kind", ["JPEG", "MPO", "PNG", "WEBP", "BMP", "GIF"])
def test_the_size_of_every_format(kind: str) -> None:
    header = read_header(saved(picture(), kind))
    assert (header.width, header.height) == (37, 21)
    assert header.format == ("JPEG" if kind == "MPO" else kind)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"progressive": True}),
        ("JPEG", {"exif": b"Exif\0\0" + bytes(60_000), "icc_profile": bytes(200_000)}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0"}),
        ("PNG", {"save_all": True, "append_images": [picture(), picture()]}),
        ("GIF", {"save_all": True, "append_images": [picture().rotate(90)], "comment": b"x" * 5000}),
    ],
)
def test_with_what_comes_before_the_pixels(kind: str, options: dict[str, object]) -> None:
    data = saved(picture(), kind, **options)
    header = read_header(data)
    assert (header.width, header.height) == (37, 21)
    assert (header.scans_at > 0) == ("progressive" in options)
    assert read(data).shape == (56, 56, 3)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            saved(picture(), "TIFF"),
            "the image is TIFF, which this server does not read; send JPEG, PNG, WEBP, BMP or GIF",
        ),
        (saved(picture(), "ICO"), "is ICO"),
        (saved(picture(), "PPM"), "is PNM"),
        (b"\0\0\0\x20ftypheic\0\0\0\0", "is HEIC"),
        (b"\0\0\0\x20ftypavif\0\0\0\0", "is AVIF"),
        (b'<?xml version="1.0"?><svg/>', "is SVG, XML or HTML"),
        (b"%PDF-1.7", "is PDF"),
        (b"\0" * 50, "not an image that this server reads"),
        (b"\xff\xd8\xff", "ends within its header"),
        (b"\xff\xd8\xff\xd9", "has no image data"),
        (PNG[:20], "ends within its header"),
        (b"\x89PNG\r\n\x1a\n" + chunk(b"tEXt", b"a\0b") + PNG[8:], "does not begin with an IHDR chunk"),
        (PNG[:16] + bytes(4) + PNG[20:], "its size is 0x4"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "ends within its header"),
        (b"RIFF\0\0\0\0WEBPVP8X" + bytes(8), "ends within its header"),
        (b"RIFF\0\0\0\0WEBPJUNK" + bytes(30), "a WebP cannot begin with the chunk b'JUNK'"),
        (b"GIF89a", "ends within its header"),
        (GIF[:GIF_PALETTE_END] + b";", "has no image data"),
        (b"BM" + bytes(12) + struct.pack("<IiiHHI", 40, 9, 9, 1, 8, 1) + bytes(40), "compressed"),
        (b"BM" + bytes(12) + struct.pack("<IiiHHI", 40, -9, 9, 1, 8, 0) + bytes(40), "its size is -9x9"),
    ],
)
def test_what_is_refused_by_its_header(data: bytes, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        read_header(data)


def second_size(data: bytes) -> bytes:
    """Returns the JPEG with two frame headers, of which the first declares a larger size."""
    at = data.index(b"\xff\xc0")
    frame = data[at : at + 2 + struct.unpack_from(">H", data, at + 2)[0]]
    return data[:at] + frame[:5] + struct.pack(">HH", 60_000, 60_000) + frame[9:] + data[at:]


def many_scans(data: bytes, count: int) -> bytes:
    """Returns the progressive JPEG with many repetitions of its last scan."""
    at = data.rindex(b"\xff\xda")
    return data[:at] + data[at:-2] * count + b"\xff\xd9"


JPEG = saved(picture(), "JPEG")
BOMBS = {
    "a frame beyond the canvas": (
        lambda: (
            GIF[:GIF_PALETTE_END] + b"\x2c" + struct.pack("<HHHH", 60_000, 60_000, 5, 5) + GIF[GIF_PALETTE_END + 9 :]
        ),
        "image has 60005x60005 pixels",
    ),
    "a WebP's canvas": (lambda: b"RIFF\0\0\0\0WEBPVP8X" + bytes(8) + b"\xff" * 6, "image has 16777216x16777216 pixels"),
    "a column": (lambda: png(np.zeros((30_000, 1), np.uint8)), "resizing the image from 1x30000 to 64x1920000"),
    "a row of 50 million pixels": (lambda: png(np.zeros((1, 50_000_000), np.uint8)), "a side may have 65,535"),
    "a column of 50 million pixels": (lambda: png(np.zeros((50_000_000, 1), np.uint8)), "a side may have 65,535"),
    "two sizes": (lambda: second_size(JPEG), "damaged"),
    "more fill than a JPEG": (lambda: b"\xff\xd8" + b"\xff" * 10**7, "more than 512 segments"),
    "junk before the picture": (lambda: b"\xff\xd8\xff" + b"a" * 10**7, "JPEG"),
    "empty segments": (lambda: b"\xff\xd8" + b"\xff\xe0\0\2" * 10**5 * 3 + JPEG[2:], "more than 512 segments"),
    "too many scans": (lambda: many_scans(saved(picture(), "JPEG", progressive=True), 5000), "at least 1001 scans"),
    "large scans": (
        lambda: many_scans(saved(picture(1000, 1000), "JPEG", progressive=True, quality=1), 900),
        "scans of 1000x1000 pixels",
    ),
    "empty chunks": (
        lambda: PNG[:HEADER_END] + chunk(b"teXt") * 10**5 * 3 + PNG[HEADER_END:],
        "more than 65536 chunks",
    ),
    "empty data": (lambda: PNG[:HEADER_END] + chunk(b"IDAT") * 10**5 * 3 + PNG[HEADER_END:], "more than 65536 chunks"),
    "profiles": (
        lambda: PNG[:HEADER_END] + chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**20))) * 30 + PNG[HEADER_END:],
        "more than one colour profile",
    ),
    "a profile of 20 MB": (
        lambda: PNG[:HEADER_END] + chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(10**7 * 2))) + PNG[HEADER_END:],
        "too large",
    ),
    "a text of 20 MB": (
        lambda: PNG[:HEADER_END] + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**7 * 2))) + PNG[HEADER_END:],
        "too large",
    ),
    "many texts": (
        lambda: PNG[:HEADER_END] + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**20 - 1))) * 80 + PNG[HEADER_END:],
        "Too much memory",
    ),
    "texts that count for nothing": (
        lambda: (
            PNG[:HEADER_END]
            + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**20 - 1), 9)[:-4] + b"abcd") * 4000
            + PNG[HEADER_END:]
        ),
        "more than 128 compressed",
    ),
    "international texts that count for nothing": (
        lambda: (
            PNG[:HEADER_END]
            + chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(bytes(2**20 - 1), 9)[:-4] + b"abcd") * 4000
            + PNG[HEADER_END:]
        ),
        "more than 128 compressed",
    ),
    "comments": (lambda: GIF[:GIF_PALETTE_END] + b"!\xfe" + (b"\xff" + b"a" * 255) * 10**5, "more than 4096 blocks"),
    "extensions": (lambda: GIF[:GIF_PALETTE_END] + b"!\xf9\0" * 10**5 * 3, "more than 4096 blocks"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_cost_little(name: str) -> None:
    make, said = BOMBS[name]
    data = make()
    tracemalloc.start()
    started = time.process_time()
    with pytest.raises(InvalidInput, match=said):
        read(data)
    seconds = time.process_time() - started
    python_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Without the checks, each file takes several seconds to hours, or gigabytes.
    assert seconds < 2
    assert python_bytes < 200 * 2**20


def test_exif_data_that_overlap_are_not_copied_over_and_over() -> None:
    entries = 1500
    begin = 8 + 2 + 12 * entries + 4
    entry = [struct.pack("<HHII", 1000 + number, 7, 10**6, begin) for number in range(entries)]
    exif = b"II*\0" + struct.pack("<IH", 8, entries) + b"".join(entry) + bytes(4 + 10**6)
    tracemalloc.start()
    read(PNG[:HEADER_END] + chunk(b"eXIf", exif) + PNG[HEADER_END:])
    python_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Pillow before 13 takes 1.5 GB.
    assert python_bytes < 20 * 2**20


def test_the_passes_of_a_resize_count() -> None:
    """Between the two passes of the resize, 1 x 60,000 pixels become 28 x 60,000."""
    data = png(np.zeros((60_000, 1), np.uint8))
    assert read(data, EXACT_SIZE).shape == (28, 28, 1)
    with pytest.raises(InvalidInput, match="resizing the image from 1x60000 to 28x28"):
        read(data, EXACT_SIZE, pixel_limit=1_000_000)


def test_the_first_frame_of_an_animation_is_the_picture() -> None:
    frames = [picture().quantize(16), picture().rotate(180).quantize(16)]
    still = read(saved(frames[0].convert("RGB"), "PNG"))
    for kind in ("GIF", "PNG"):
        assert (read(saved(frames[0], kind, save_all=True, append_images=frames[1:])) == still).all()


def test_a_bitmap_without_the_header_of_a_file_is_read() -> None:
    image = Image.effect_noise((31, 17), 90).convert("RGB")
    file = io.BytesIO()
    image.save(file, "DIB")
    header = read_header(file.getvalue())
    assert (header.format, header.width, header.height) == ("DIB", 31, 17)
    decoded = decode(file.getvalue(), header, "RGB", upright=True)
    assert decoded.image.tobytes() == image.tobytes()


@pytest.mark.parametrize(
    ("data", "kind"), [(b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"), (b"<html>", "HTML")]
)
def test_what_stands_in_place_of_an_image_is_named(data: bytes, kind: str) -> None:
    with pytest.raises(InvalidInput, match=kind):
        read_header(data)
