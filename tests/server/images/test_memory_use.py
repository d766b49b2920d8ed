"""The memory that an image takes is what is counted for it: peaks of a process, measured for every kind of file."""

import dataclasses
import functools
import io
import json
import pickle
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cnnserve.images import memory_use
from cnnserve.images.header import ImageHeader, read_header
from cnnserve.repository.manifest import Pad, Preprocessing, Resize, TensorInfo

WIDTH, HEIGHT = 1600, 1200
TURNED = Image.Exif()
TURNED[0x0112] = 6
MIB = 2**20

SMALL = Preprocessing("RGB", Resize("shorter", (64,)), (56, 56), (0.0,) * 3, (1.0,) * 3, "graph")
GREY = dataclasses.replace(SMALL, color="L", mean=(0.0,), std=(1.0,))
ROW = TensorInfo("image", "UINT8", (56, 56, 3), "NHWC")
GREY_ROW = TensorInfo("image", "UINT8", (56, 56, 1), "NHWC")


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def deep_png(image: Image.Image) -> bytes:
    """Returns an RGB PNG of 16 bits a channel, which Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.tobytes() for row in np.asarray(image).astype(">u2") * 257)
    head = struct.pack(">IIBBBBB", *image.size, 16, 2, 0, 0, 0)
    ends = chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + ends


@functools.cache
def files() -> dict[str, bytes]:
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), np.uint8)
    rgb = Image.fromarray(noise).resize((WIDTH, HEIGHT))
    grey, palette = rgb.convert("L"), rgb.quantize(64)
    alpha = rgb.convert("RGBA")
    alpha.putalpha(grey)
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    found: dict[str, bytes] = {}
    for turn, exif in (("", b""), (" turned", TURNED.tobytes())):
        for name, image in {"rgb": rgb, "grey": grey, "cmyk": rgb.convert("CMYK")}.items():
            for progressive in (False, True):
                scans = " in scans" if progressive else ""
                found[f"jpeg {name}{scans}{turn}"] = saved(
                    image, "JPEG", progressive=progressive, subsampling="4:4:4", exif=exif
                )
        for name, image in {"rgb": rgb, "rgba": alpha, "grey": grey, "grey alpha": alpha.convert("LA")}.items():
            found[f"png {name}{turn}"] = saved(image, "PNG", compress_level=1, exif=exif)
        for name, image in {"palette": palette, "bits": grey.convert("1"), "deep grey": deep}.items():
            found[f"png {name}{turn}"] = saved(image, "PNG", compress_level=1, exif=exif)
        for name, image in {"rgb": rgb, "rgba": alpha}.items():
            for lossless in (False, True):
                found[f"webp {name}{' lossless' if lossless else ''}{turn}"] = saved(
                    image, "WEBP", method=0, lossless=lossless, exif=exif
                )
    for name, image in {"rgb": rgb, "rgba": alpha, "grey": grey, "palette": palette}.items():
        found[f"bmp {name}"] = saved(image, "BMP")
    found["png deep rgb"] = deep_png(rgb)
    found["gif"] = saved(palette, "GIF")
    for kind, pictures in {"GIF": (palette, palette.rotate(180)), "WEBP": (rgb, rgb.rotate(180))}.items():
        found[f"animated {kind}"] = saved(pictures[0], kind, save_all=True, append_images=[pictures[1]])
    return found


# It runs in a process of its own, whose heap has no free blocks. Every file starts with a new peak.
MEASURE = """
import json, pathlib, pickle, sys
from cnnserve.process import heap
from cnnserve.images.preprocessing import ImageOptions, Preprocessor

def status(field):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

spec, tensor, fast, files = pickle.load(sys.stdin.buffer)
preprocessor = Preprocessor(spec, tensor, ImageOptions(fast=fast))
peaks = {}
for name, data in [("warm-up", files[0][1]), *files]:
    heap.trim()
    before = status("VmRSS")
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    preprocessor.encoded(data)
    peaks[name] = status("VmHWM") - before
print(json.dumps(peaks))
"""


def measured(images: dict[str, bytes], spec: Preprocessing, tensor: TensorInfo, *, fast: bool) -> dict[str, int]:
    """Returns the peak of the resident memory for each file, in bytes."""
    given = pickle.dumps((spec, tensor, fast, list(images.items())))
    output = subprocess.run([sys.executable, "-c", MEASURE], input=given, check=True, capture_output=True).stdout
    peaks: dict[str, int] = json.loads(output)
    return peaks


def counted(data: bytes, spec: Preprocessing, tensor: TensorInfo, *, fast: bool) -> int:
    at_least = (spec.resize.size[-1], spec.resize.size[0]) if fast and spec.resize else None
    return memory_use.encoded_bytes(read_header(data), spec, tensor, at_least=at_least, fast=fast)


@pytest.mark.parametrize("fast", [False, True], ids=["exact", "fast"])
@pytest.mark.parametrize(("spec", "tensor"), [(SMALL, ROW), (GREY, GREY_ROW)], ids=["rgb", "grey"])
def test_every_kind_of_file_takes_what_is_counted(spec: Preprocessing, tensor: TensorInfo, *, fast: bool) -> None:
    images = files()
    peaks = measured(images, spec, tensor, fast=fast)
    counts = {name: counted(data, spec, tensor, fast=fast) for name, data in images.items()}
    short = {name: (peaks[name], counts[name]) for name in images if peaks[name] > counts[name] + MIB}
    assert not short
    if spec is SMALL:
        # Nor is far more counted than is taken, which would refuse images that fit.
        wasteful = {name: (peaks[name], counts[name]) for name in images if counts[name] > 2.2 * peaks[name] + 4 * MIB}
        assert not wasteful


@pytest.mark.parametrize(
    ("datatype", "layout"), [("UINT8", "NHWC"), ("FP16", "NCHW"), ("FP32", "NHWC"), ("FP32", "NCHW")]
)
@pytest.mark.parametrize(
    ("resize", "fast"),
    [
        (Resize("exact", (1201, 1601)), False),
        (Resize("exact", (1800, 2400)), False),
        (Resize("exact", (1800, 2400)), True),
        (Resize("exact", (1800, 2400), library="opencv"), False),
        (Resize("letterbox", (1200, 1200)), False),
    ],
    ids=["as large", "larger", "larger fast", "larger opencv", "padded"],
)
def test_large_rows_take_what_is_counted(resize: Resize, datatype: str, layout: str, *, fast: bool) -> None:
    height, width = resize.size
    spec = dataclasses.replace(
        SMALL,
        resize=resize,
        crop=None,
        normalize="graph" if datatype == "UINT8" else "host",
        pad=Pad((0.0,) * 3) if resize.mode == "letterbox" else None,
    )
    shape = (3, height, width) if layout == "NCHW" else (height, width, 3)
    tensor = TensorInfo("image", datatype, shape, layout)
    data = files_of_one()
    peak = measured({"png": data}, spec, tensor, fast=fast)["png"]
    assert peak <= counted(data, spec, tensor, fast=fast) + MIB


def files_of_one() -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), np.uint8)
    return saved(Image.fromarray(noise).resize((WIDTH, HEIGHT)), "PNG", compress_level=1)


def test_a_jpeg_that_is_decoded_smaller_takes_less() -> None:
    header = ImageHeader("JPEG", 4000, 3000)
    whole = memory_use.encoded_bytes(header, SMALL, ROW)
    assert whole > 100 * MIB
    assert memory_use.encoded_bytes(header, SMALL, ROW, at_least=(64, 64), fast=True) < 8 * MIB


@pytest.mark.parametrize(
    ("size", "at_least", "scale"),
    [((800, 800), (100, 100), 8), ((799, 800), (100, 100), 4), ((400, 800), (100, 50), 4), ((99, 99), (100, 100), 1)],
)
def test_the_fraction_of_a_jpeg(size: tuple[int, int], at_least: tuple[int, int], scale: int) -> None:
    assert memory_use.draft_scale(ImageHeader("JPEG", *size), at_least) == scale
    assert memory_use.draft_scale(ImageHeader("PNG", *size), at_least) == 1


@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([(64, 64), (100, 300), (7, 900)]))
def test_the_fraction_is_never_more_than_pillows(width: int, height: int, at_least: tuple[int, int]) -> None:
    """Pillow chooses it from both sizes, after it has looked at the orientation."""
    scale = memory_use.draft_scale(ImageHeader("JPEG", width, height), at_least)
    for wanted in (at_least, at_least[::-1]):
        assert scale == 1 or min(width // wanted[0], height // wanted[1]) >= scale


def test_pixels_as_sent() -> None:
    assert memory_use.raw_bytes((WIDTH, HEIGHT), SMALL, ROW, fast=False) > 8 * WIDTH * HEIGHT
