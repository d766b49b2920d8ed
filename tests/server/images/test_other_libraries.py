"""Pixels of timm, Pillow's other filters, OpenCV and the letterboxes of others, bit for bit."""

import dataclasses
import io
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_image

from cnnserve.images.preprocessing import ImageOptions, Preprocessor, RawImage
from cnnserve.repository.manifest import Pad, Preprocessing, Resize, TensorInfo
from torchvision_pixels import Oracle

BLACK = ((0.0,) * 3, (1.0,) * 3)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CHINA = load_sample_image("china.jpg")
SIZES = [(500, 375), (375, 500), (640, 427), (100, 75), (33, 900), (901, 40), (224, 224), (1, 1), (255, 257)]


@pytest.fixture(scope="module")
def oracle() -> Iterator[Oracle]:
    with Oracle() as oracle:
        yield oracle


def image(width: int, height: int) -> Image.Image:
    noise = np.random.default_rng(width * height).integers(-20, 20, (height, width, 3))
    stretched = np.asarray(Image.fromarray(CHINA).resize((width, height), Image.Resampling.BICUBIC))
    return Image.fromarray(np.clip(stretched + noise, 0, 255).astype(np.uint8))


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def spec(resize: Resize | None, crop: tuple[int, int] | None = None, **more: Any) -> Preprocessing:
    return Preprocessing("RGB", resize, crop, *BLACK, "graph", **more)


def pixels(source: bytes | Image.Image, wanted: Preprocessing, **options: Any) -> np.ndarray:
    size = wanted.crop or (wanted.resize and wanted.resize.size) or (1, 1)
    tensor = TensorInfo("image", "UINT8", (*size[-2:], len(wanted.mean)), "NHWC")
    if isinstance(source, Image.Image):
        raw = RawImage(source.tobytes(), source.height, source.width, 3)
        return Preprocessor(wanted, tensor, **options).row(raw)
    return Preprocessor(wanted, tensor, **options).row(source)


@pytest.mark.parametrize("name", ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"])
@pytest.mark.parametrize("crop", [(224, 224), (223, 160), (300, 260)])
def test_every_filter_of_pillow(oracle: Oracle, name: Any, crop: tuple[int, int]) -> None:
    for size in SIZES:
        data = png(image(*size))
        for resize in (
            Resize("shorter", (256,), name),
            Resize("exact", (260, 240), name),
            Resize("exact", (40, 30), name),
        ):
            wanted = spec(resize, crop)
            assert (pixels(data, wanted) == oracle.pixels(data, wanted)).all(), (size, resize)


# timm


def of_timm(config: dict[str, Any]) -> Preprocessing:
    """The preprocessing that a timm config means, put down by hand."""
    height, width = config["input_size"][1:]
    scaled = tuple(math.floor(side / config["crop_pct"]) for side in (height, width))
    mode = config.get("crop_mode", "center")
    kind = {"squash": "exact", "border": "letterbox"}.get(mode, "shorter")
    size = scaled[:1] if kind == "shorter" and scaled[0] == scaled[1] else scaled
    fill = Pad(tuple(float(round(255 * value)) for value in config["mean"])) if mode == "border" else None
    resize, mean, std = Resize(kind, size, config["interpolation"]), config["mean"], config["std"]
    return Preprocessing("RGB", resize, (height, width), mean, std, "host", pad=fill)


TIMM = {
    "center": {},
    "center, 95 %": {"crop_pct": 0.95, "interpolation": "bilinear"},
    "center, all": {"crop_pct": 1.0},
    "center, larger than the image": {"crop_pct": 1.1},
    "not square": {"input_size": (3, 192, 256), "crop_pct": 0.9},
    "not square, tall": {"input_size": (3, 224, 160), "crop_pct": 1.0},
    "squash": {"crop_mode": "squash", "crop_pct": 0.9},
    "squash, not square": {"crop_mode": "squash", "crop_pct": 1.0, "input_size": (3, 160, 224)},
    "border": {"crop_mode": "border", "crop_pct": 1.0},
    "border, cropped": {"crop_mode": "border", "crop_pct": 0.9},
    "border, not square": {"crop_mode": "border", "crop_pct": 0.95, "input_size": (3, 160, 225)},
    "border, lanczos": {"crop_mode": "border", "interpolation": "lanczos", "crop_pct": 0.875},
}
DEFAULT = {"input_size": (3, 224, 224), "interpolation": "bicubic", "crop_pct": 0.875, "mean": MEAN, "std": STD}


@pytest.mark.parametrize("name", TIMM)
def test_every_crop_of_timm_pixels_and_floats(oracle: Oracle, name: str) -> None:
    config = {**DEFAULT, **TIMM[name]}
    wanted = of_timm(config)
    height, width = config["input_size"][1:]
    floats = Preprocessor(wanted, TensorInfo("x", "FP32", (3, height, width), "NCHW"))
    for size in SIZES:
        # timm itself fails where a side becomes nothing.
        if config.get("crop_mode") == "border" and max(size) / min(size) > 300:
            continue
        data = png(image(*size))
        made = pixels(data, dataclasses.replace(wanted, normalize="graph"))
        assert (made == oracle.timm(data, config).transpose(1, 2, 0)).all(), size
        assert (floats.row(data) == oracle.timm(data, config, normalize=True)).all(), size


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(1, 700), st.integers(1, 700), st.sampled_from(list(TIMM)))
@example(2, 700, "border")
def test_every_size_as_timm_does_it(oracle: Oracle, width: int, height: int, name: str) -> None:
    config = {**DEFAULT, **TIMM[name]}
    if max(width, height) / min(width, height) > 300:
        return
    data = png(image(width, height))
    made = pixels(data, dataclasses.replace(of_timm(config), normalize="graph"))
    assert (made == oracle.timm(data, config).transpose(1, 2, 0)).all()


# OpenCV, and what people write around it


CV = {
    "nearest": cv2.INTER_NEAREST,
    "bilinear": cv2.INTER_LINEAR,
    "bicubic": cv2.INTER_CUBIC,
    "lanczos": cv2.INTER_LANCZOS4,
    "area": cv2.INTER_AREA,
}


def opencv(mode: Any, size: tuple[int, ...], name: Any = "bilinear") -> Resize:
    return Resize(mode, size, name, antialias=False, library="opencv")


@pytest.mark.parametrize("name", CV)
@pytest.mark.parametrize("color", ["RGB", "BGR", "L"])
def test_opencvs_resize(name: str, color: Any) -> None:
    for size in SIZES:
        data = png(image(*size))
        wanted = dataclasses.replace(spec(opencv("exact", (224, 160), name)), color=color)
        if color == "L":
            wanted = dataclasses.replace(wanted, mean=(0.0,), std=(1.0,))
            source = np.asarray(Image.open(io.BytesIO(data)).convert("L"))
        else:
            # OpenCV's own decoder, in OpenCV's order of channels.
            source = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        expected = cv2.resize(source, (160, 224), interpolation=CV[name])
        expected = expected[:, :, ::-1] if color == "RGB" else expected
        assert (pixels(data, wanted) == expected.reshape(224, 160, -1)).all(), size


def ultralytics(source: np.ndarray, height: int, width: int, color: int, *, center: bool) -> np.ndarray:
    """Their LetterBox with scaleup: ratio, rounded sides, half the margin less a tenth of a pixel."""
    had = source.shape[:2]
    factor = min(height / had[0], width / had[1])
    wide, tall = round(had[1] * factor), round(had[0] * factor)
    right, below = float(width - wide), float(height - tall)
    if center:
        right, below = right / 2, below / 2
    resized = cv2.resize(source, (wide, tall), interpolation=cv2.INTER_LINEAR)
    edges = (
        round(below - 0.1) if center else 0,
        round(below + 0.1),
        round(right - 0.1) if center else 0,
        round(right + 0.1),
    )
    return cv2.copyMakeBorder(resized, *edges, cv2.BORDER_CONSTANT, value=(color,) * 3)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 900), st.integers(1, 900), st.booleans())
@example(320, 107, True)
@example(640, 427, False)
def test_a_letterbox_as_ultralytics_does_it(width: int, height: int, center: bool) -> None:
    picture = image(width, height)
    if min(width, height) * 320 < max(width, height):
        return
    wanted = spec(opencv("letterbox", (192, 320)), pad=Pad((114.0,) * 3, "center" if center else "start"))
    expected = ultralytics(np.asarray(picture), 192, 320, 114, center=center)
    assert (pixels(picture, wanted) == expected).all()


def paddleocr(source: np.ndarray, height: int, width: int) -> np.ndarray:
    """Their text line classifier: fixed height, at most `width` wide, -1 to 1, then zeros on the right."""
    wide = min(width, math.ceil(height * (source.shape[1] / float(source.shape[0]))))
    resized = cv2.resize(source, (wide, height)).astype("float32").transpose(2, 0, 1) / 255
    row = np.zeros((3, height, width), np.float32)
    row[:, :, :wide] = (resized - 0.5) / 0.5
    return row


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 900), st.integers(1, 300))
@example(900, 100)
@example(100, 100)
def test_a_fixed_height_as_paddleocr_does_it(width: int, height: int) -> None:
    picture = image(width, height)
    resize, half = opencv("fit", (48, 192)), ((0.5,) * 3, (0.5,) * 3)
    wanted = Preprocessing("BGR", resize, None, *half, "host", pad=Pad((127.5,) * 3))
    row = Preprocessor(wanted, TensorInfo("x", "FP32", (3, 48, 192), "NCHW")).row(
        RawImage(picture.tobytes(), height, width, 3)
    )
    expected = paddleocr(np.asarray(picture)[:, :, ::-1], 48, 192)
    np.testing.assert_allclose(row, expected, atol=1e-7)


def test_a_fixed_height_of_any_width_is_cropped_on_the_right() -> None:
    picture = image(400, 100)
    wanted = spec(Resize("fit", (50,), "lanczos"), (50, 80))
    whole = np.asarray(picture.resize((200, 50), Image.Resampling.LANCZOS))
    assert (pixels(picture, wanted) == whole[:, :80]).all()


# What no library defines


@pytest.mark.parametrize(("rounding", "margins"), [("even", [0, 2, 2, 4]), ("down", [0, 1, 2, 3])])
def test_where_half_a_pixel_of_the_crop_goes(rounding: Any, margins: list[int]) -> None:
    """Of odd margins 1, 3, 5 and 7; Hugging Face's numpy code rounds down, torchvision to even."""
    for extra, margin in zip((1, 3, 5, 7), margins, strict=True):
        picture = image(20 + extra, 20)
        wanted = spec(None, (20, 20), crop_rounding=rounding)
        assert (pixels(picture, wanted) == np.asarray(picture)[:, margin : margin + 20]).all()


@pytest.mark.parametrize(("rounding", "left"), [("even", 1), ("down", 2)])
def test_where_the_odd_pixel_of_the_border_goes(rounding: Any, left: int) -> None:
    picture = image(20, 20)
    made = pixels(picture, spec(None, (20, 23), crop_rounding=rounding, pad=Pad((1.0, 2.0, 3.0))))
    assert (made[:, left : left + 20] == np.asarray(picture)).all()
    assert (made[:, :left] == (1, 2, 3)).all()


@pytest.mark.parametrize("color", ["RGB", "BGR"])
def test_the_padding_goes_the_way_of_the_pixels(color: Any) -> None:
    """Its colour is in the order of the channels, and is scaled and normalised as pixels are."""
    picture = Image.new("RGB", (10, 10), (9, 60, 200))
    pad = (9.0, 60.0, 200.0) if color == "RGB" else (200.0, 60.0, 9.0)
    wanted = Preprocessing(color, None, (16, 14), (1.0, 2.0, 3.0), (0.5, 2.0, 4.0), "host", pad=Pad(pad), scale=1.0)
    row = Preprocessor(wanted, TensorInfo("x", "FP32", (3, 16, 14), "NCHW")).row(png(picture))
    expected = (np.array(pad) - (1, 2, 3)) / (0.5, 2, 4)
    np.testing.assert_allclose(row, np.broadcast_to(expected[:, None, None], (3, 16, 14)), rtol=1e-6)


FAST = ImageOptions(fast=True)
MODES = {
    "letterbox": spec(Resize("letterbox", (224, 200)), pad=Pad((114.0,) * 3)),
    "letterbox and crop": spec(Resize("letterbox", (256, 256), "bicubic"), (224, 224), pad=Pad((1.0,) * 3, "start")),
    "fit": spec(Resize("fit", (64, 300), "lanczos")),
    "covered": spec(Resize("shorter", (200, 180), "bicubic"), (190, 170)),
    "padded crop": spec(Resize("shorter", (200,)), (224, 224)),
}
EXACT_ONLY = {
    "nearest": spec(Resize("shorter", (200,), "nearest"), (190, 190)),
    "box": spec(Resize("letterbox", (200, 200), "box")),
    "hamming": spec(Resize("fit", (200, 100), "hamming")),
    "opencv": spec(opencv("shorter", (200,), "area"), (190, 190)),
}


def jpeg(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    smooth = Image.fromarray(load_sample_image("flower.jpg")).resize((width, height))
    smooth.save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


@pytest.mark.parametrize("name", MODES)
def test_fast_stays_close_in_every_mode(name: str) -> None:
    for size in ((500, 375), (1400, 900), (300, 900)):
        data = jpeg(*size)
        exact, fast = pixels(data, MODES[name]), pixels(data, MODES[name], options=FAST)
        off = np.abs(fast.astype(int) - exact)
        # A shift by one pixel, or a border that lies elsewhere, would be off by far more.
        assert off.mean() < 1.2, size
        assert off.max() <= 40, size


@pytest.mark.parametrize("name", EXACT_ONLY)
def test_fast_is_exact_where_there_is_no_faster_way(name: str) -> None:
    data = jpeg(1400, 900)
    assert (pixels(data, EXACT_ONLY[name]) == pixels(data, EXACT_ONLY[name], options=FAST)).all()


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 900), st.integers(1, 900), st.sampled_from([*MODES, *EXACT_ONLY]), st.booleans())
def test_every_size_becomes_a_row(width: int, height: int, name: str, fast: bool) -> None:
    wanted = {**MODES, **EXACT_ONLY}[name]
    row = pixels(image(width, height), wanted, options=ImageOptions(fast=fast))
    assert row.shape[:2] == (wanted.crop or wanted.resize.size)


def test_without_opencv_the_error_names_the_extra() -> None:
    code = """
import json, sys
sys.modules["cv2"] = None
from cnnserve.errors import ModelLoadFailed
from cnnserve.images.preprocessing import Preprocessor
from cnnserve.repository.manifest import Preprocessing, Resize, TensorInfo
def make(library):
    resize = Resize("exact", (8, 8), library=library)
    spec = Preprocessing("RGB", resize, None, (0.0,) * 3, (1.0,) * 3, "graph")
    return Preprocessor(spec, TensorInfo("x", "UINT8", (8, 8, 3), "NHWC"))
make("pillow")
try:
    make("opencv")
except ModelLoadFailed as error:
    print(json.dumps(str(error)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout).endswith('pip install "cnnserve[opencv]"')
