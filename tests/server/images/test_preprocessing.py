"""Preprocessing: from images to rows, as the manifest describes it."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_image

from cnnserve.errors import InvalidInput
from cnnserve.images import resampling
from cnnserve.images.decoding import decode
from cnnserve.images.geometry import resized_size
from cnnserve.images.header import read_header
from cnnserve.images.preprocessing import ImageOptions, Preprocessor, RawImage
from cnnserve.repository.manifest import Preprocessing, Resize, TensorInfo
from support import png

IMAGENET = Preprocessing(
    "RGB", Resize("shorter", (256,)), (224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "host"
)
UINT8 = TensorInfo("image", "UINT8", (224, 224, 3), "NHWC")
FLOAT = TensorInfo("image", "FP32", (3, 224, 224), "NCHW")
GREY = Preprocessing("L", Resize("exact", (28, 28)), None, (0.0,), (1.0,), "graph")
DIGIT = TensorInfo("image", "UINT8", (28, 28, 1), "NHWC")


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((500, 375), (341, 256)), ((375, 500), (256, 341)), ((256, 256), (256, 256)), ((1, 3), (256, 768))],
)
def test_the_longer_side_is_truncated(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert resized_size(size, Resize("shorter", (256,))) == expected


def test_uint8_and_float_rows_agree() -> None:
    data = png(noise(300, 400))
    pixels = Preprocessor(IMAGENET, UINT8).encoded(data)
    floats = Preprocessor(IMAGENET, FLOAT).encoded(data)
    assert pixels.shape == (224, 224, 3)
    assert pixels.dtype == np.uint8
    expected = (pixels / np.float32(255) - np.float32(IMAGENET.mean)) / np.float32(IMAGENET.std)
    assert floats.shape == (3, 224, 224)
    np.testing.assert_allclose(floats, expected.transpose(2, 0, 1), atol=1e-6)


def test_the_crop_is_the_centre() -> None:
    spec = Preprocessing("RGB", None, (2, 2), (0.0,) * 3, (1.0,) * 3, "graph")
    image = noise(4, 6)
    row = Preprocessor(spec, TensorInfo("image", "UINT8", (2, 2, 3), "NHWC")).encoded(png(image))
    assert (row == image[1:3, 2:4]).all()


def test_an_image_smaller_than_the_crop_is_padded_with_black() -> None:
    spec = Preprocessing("RGB", None, (4, 4), (0.0,) * 3, (1.0,) * 3, "graph")
    image = noise(2, 2) | 1
    row = Preprocessor(spec, TensorInfo("image", "UINT8", (4, 4, 3), "NHWC")).encoded(png(image))
    assert (row[1:3, 1:3] == image).all()
    assert np.count_nonzero(row) == np.count_nonzero(image)


def test_bgr_is_rgb_backwards() -> None:
    spec = Preprocessing("BGR", Resize("exact", (4, 4)), None, (0.0,) * 3, (1.0,) * 3, "graph")
    image = noise(4, 4)
    row = Preprocessor(spec, TensorInfo("image", "UINT8", (4, 4, 3), "NHWC")).encoded(png(image))
    assert (row == image[:, :, ::-1]).all()


@settings(max_examples=50)
@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from([1, 3, 4]), st.integers(0, 99))
def test_raw_pixels_pass_the_same_preprocessing_as_a_file(height: int, width: int, channels: int, seed: int) -> None:
    image = noise(height, width, channels, seed)
    for spec, tensor in ((IMAGENET, UINT8), (GREY, DIGIT)):
        preprocessor = Preprocessor(spec, tensor)
        from_file = preprocessor.row(png(image))
        from_pixels = preprocessor.row(RawImage(image.tobytes(), height, width, channels))
        assert (from_file == from_pixels).all()
        assert from_file.shape == tensor.shape


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("color", ["RGB", "L"])
def test_every_mode_of_a_white_image_is_white(mode: str, color: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((40, 40), 65535, np.uint16))
    elif mode == "P":
        image = Image.new("P", (40, 40), 7)
        image.putpalette([255, 255, 255] * 256)
    else:
        image = Image.new("RGB", (40, 40), "white").convert(mode)
    buffer = io.BytesIO()
    transparency = {"transparency": b"\xff" * 256} if mode == "P" else {}
    image.save(buffer, "JPEG" if mode == "CMYK" else "PNG", **transparency)
    spec, tensor = (IMAGENET, UINT8) if color == "RGB" else (GREY, DIGIT)
    assert (Preprocessor(spec, tensor).encoded(buffer.getvalue()) >= 254).all()


def test_exif_orientation_is_applied_where_the_manifest_says_so() -> None:
    image = Image.fromarray(noise(28, 28, 1))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    turned = Preprocessor(GREY, DIGIT).encoded(buffer.getvalue())
    plain = Preprocessor(
        Preprocessing("L", GREY.resize, None, (0.0,), (1.0,), "graph", exif_orientation=False), DIGIT
    ).encoded(buffer.getvalue())
    assert (turned == plain[::-1, ::-1]).all()


def huge_png(width: int, height: int) -> bytes:
    """Returns a PNG whose header declares a size that its data does not have."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return png(noise(2, 2, 1))[:8] + chunk + png(noise(2, 2, 1))[33:]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty"),
        (b"hello, world", "not an image that this server reads"),
        (png(noise(64, 64))[:100], "damaged"),
        (huge_png(100_000, 100_000), "limit is 50,000,000 pixels; send a smaller image, or raise cnnserve.max_pixels"),
        # The image has 3,000 pixels, but the resized image would have 256 x 768,000.
        (
            png(noise(3000, 1, 1)),
            "1x3000 to 256x768000 takes more pixels than this model's limit of 50,000,000; "
            "send a smaller or less elongated image, or raise cnnserve.max_pixels",
        ),
    ],
)
def test_bad_files(data: bytes, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        Preprocessor(IMAGENET, UINT8).encoded(data)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (RawImage(bytes(12), 2, 2, 2), "2 channels"),
        (RawImage(bytes(11), 2, 2, 3), "11 bytes, expected 12"),
        (RawImage(b"", 0, 2, 3), "0x2"),
    ],
)
def test_bad_pixels(image: RawImage, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        Preprocessor(IMAGENET, UINT8).raw(image)


@settings(max_examples=300)
@given(st.data())
def test_mutated_files_are_an_image_or_an_invalid_input(data: st.DataObject) -> None:
    content = bytearray(png(noise(20, 20)))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        row = Preprocessor(GREY, DIGIT).encoded(bytes(content))
    except InvalidInput:
        return
    assert row.shape == (28, 28, 1)


def photograph(width: int, height: int, kind: str = "JPEG", orientation: int = 1) -> bytes:
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    planes = [np.sin(9 * x + 4 * y), np.cos(13 * y * x), np.sin(5 * x) * np.cos(21 * y)]
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray((127 + 120 * np.stack(planes, -1)).astype(np.uint8)).save(buffer, kind, quality=95, exif=exif)
    return buffer.getvalue()


EXACT_SIZE = Preprocessing("RGB", Resize("exact", (150, 260)), (120, 200), (0.0,) * 3, (1.0,) * 3, "graph")
FAST = ImageOptions(fast=True)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("spec", [IMAGENET, EXACT_SIZE], ids=["shorter", "exact"])
def test_fast_differs_by_little_however_the_picture_is_turned(spec: Preprocessing, orientation: int) -> None:
    height, width = spec.crop or (0, 0)
    tensor = TensorInfo("image", "UINT8", (height, width, 3), "NHWC")
    exact, fast = Preprocessor(spec, tensor), Preprocessor(spec, tensor, FAST)
    for size in ((1500, 1100), (400, 600)):
        data = photograph(*size, orientation=orientation)
        off = np.abs(fast.encoded(data).astype(int) - exact.encoded(data))
        # If pixels were shifted by one, the difference would be much larger.
        assert off.mean() < 0.5
        assert off.max() <= 12


@pytest.mark.parametrize("name", ["china", "flower"])
def test_fast_is_one_step_off_in_a_fifth_where_nothing_is_scaled(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    Image.fromarray(load_sample_image(f"{name}.jpg")).resize((500, 375)).save(buffer, "JPEG", quality=90)
    exact = Preprocessor(IMAGENET, UINT8).encoded(buffer.getvalue())

    def off() -> np.ndarray:
        fast = Preprocessor(IMAGENET, UINT8, FAST).encoded(buffer.getvalue())
        return np.abs(fast.astype(int) - exact)

    assert off().max() == 1
    assert off().mean() < 0.2
    monkeypatch.setattr(resampling, "library", lambda: None)  # as where the extra `fast` is not installed
    assert off().max() == 1
    assert off().mean() < 0.005


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize(
    ("orientation", "size", "at_least", "decoded", "box"),
    [
        (1, (1025, 801), (256, 200), (257, 201), (0, 0, 256.25, 200.25)),
        (3, (1025, 801), (256, 200), (257, 201), (0.75, 0.75, 257, 201)),
        (6, (1025, 801), (256, 200), (401, 513), (0.5, 0, 401, 512.5)),
        (1, (1025, 801), (513, 10), (1025, 801), (0, 0, 1025, 801)),
        (1, (9000, 800), (64, 64), (1125, 100), (0, 0, 1125, 100)),
    ],
)
def test_a_large_jpeg_is_decoded_smaller_but_no_smaller_than_asked(
    mode: str,
    orientation: int,
    size: tuple[int, int],
    at_least: tuple[int, int],
    decoded: tuple[int, int],
    box: tuple[float, float, float, float],
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, "JPEG", exif=exif)
    data = buffer.getvalue()
    picture = decode(data, read_header(data), "RGB", upright=True, at_least=at_least)
    assert (picture.image.size, picture.box) == (decoded, box)
    assert picture.size == (size if orientation < 5 else size[::-1])
    assert decode(data, read_header(data), "RGB", upright=True).image.size == picture.size


def test_fast_neither_stretches_nor_shifts_what_is_decoded_smaller() -> None:
    """The decoder rounds a size up if it is no multiple of the scale. The added pixels do not belong to the image."""
    flower = Image.fromarray(load_sample_image("flower.jpg"))
    exact, fast = Preprocessor(IMAGENET, UINT8), Preprocessor(IMAGENET, UINT8, FAST)

    def off(width: int, height: int, orientation: int) -> float:
        exif = Image.Exif()
        exif[0x0112] = orientation
        buffer = io.BytesIO()
        flower.resize((width, height)).save(buffer, "JPEG", quality=90, exif=exif)
        data = buffer.getvalue()
        return float(np.abs(fast.encoded(data).astype(int) - exact.encoded(data)).mean())

    for orientation in range(1, 9):
        even = off(1024, 688, orientation)
        assert even < 1.5
        # At half the size, the decoder makes 342 rows for 341 1/2, and 512 columns for 511 1/2.
        for size in ((1024, 683), (683, 1024), (1023, 681)):
            assert off(*size, orientation) < 1.15 * even


@pytest.mark.parametrize("size", [(1, 1), (7, 900), (223, 224), (256, 256), (3000, 20)])
def test_fast_takes_every_size(size: tuple[int, int]) -> None:
    for spec in (IMAGENET, Preprocessing("RGB", None, (224, 224), (0.0,) * 3, (1.0,) * 3, "graph")):
        for kind in ("JPEG", "PNG"):
            data = photograph(*size, kind)
            off = np.abs(
                Preprocessor(spec, UINT8, FAST).encoded(data).astype(int) - Preprocessor(spec, UINT8).row(data)
            )
            assert off.max() <= 12


def test_a_jpeg_that_is_cut_off_is_refused_in_both_ways() -> None:
    data = photograph(800, 600)
    for options in (ImageOptions(), FAST):
        with pytest.raises(InvalidInput, match="truncated"):
            Preprocessor(IMAGENET, UINT8, options).encoded(data[: len(data) // 2])


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # as the server does
def test_broken_exif_data_break_no_picture() -> None:
    good = photograph(80, 60, orientation=6)
    at = good.index(b"Exif\0\0") + 10
    broken = good[:at] + b"\xff" * 16 + good[at + 16 :]
    plain = Preprocessor(IMAGENET, UINT8).encoded(photograph(80, 60))
    assert (Preprocessor(IMAGENET, UINT8).encoded(broken) == plain).all()
