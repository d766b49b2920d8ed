"""The fast resize of cykooz-resizer compared with Pillow's."""

import logging
import math
import platform
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from cnnserve.images import resampling

PILLOW = resampling.PILLOW


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return Image.fromarray(np.random.default_rng(width * height).integers(0, 256, shape, dtype=np.uint8))


def steps(image: Image.Image, size: tuple[int, int], interpolation: str, box: resampling.Box) -> np.ndarray:
    """Returns the differences from Pillow's result, in steps of 1/255."""
    pillow = np.asarray(image.resize(size, PILLOW[interpolation], box))
    return np.asarray(resampling.resized(image, size, interpolation, box)).astype(int) - pillow


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64", "arm64"), reason="cykooz-resizer has no wheel")
def test_the_library_is_here() -> None:
    """Without the library, all tests below would compare Pillow with itself."""
    assert resampling.library() is not None


BOXES = [
    ((224, 224), (85.05, 23.4, 413.5, 351.6)),
    ((224, 224), (0.0, 0.0, 500.0, 375.0)),
    ((600, 450), (100.25, 0.0, 350.5, 374.9)),
    ((1, 1), (0.0, 0.0, 500.0, 375.0)),
    ((100, 375), (0.0, 0.0, 500.0, 375.0)),
    ((500, 30), (0.0, 0.0, 500.0, 375.0)),
]


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize(("size", "box"), BOXES)
def test_bilinear_is_one_step_off_at_most_and_has_no_bias(
    mode: str, size: tuple[int, int], box: resampling.Box
) -> None:
    off = steps(noise(500, 375, mode), size, "bilinear", box)
    assert np.abs(off).max() <= 1
    assert abs(off.mean()) < 0.01 or off.size < 9


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize(("size", "box"), BOXES)
def test_bicubic_is_pillows(mode: str, size: tuple[int, int], box: resampling.Box) -> None:
    """Pillow does it: at hard edges, as in drawings, the library's bicubic resize would differ by many steps."""
    assert not steps(noise(500, 375, mode), size, "bicubic", box).any()


@settings(max_examples=200)
@given(
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.sampled_from(list(PILLOW)),
    st.sampled_from(["L", "RGB"]),
    st.lists(st.floats(0, 1), min_size=4, max_size=4),
)
@example((1, 90), (60, 1), "bilinear", "RGB", [0, 0, 1, 1])
def test_every_box(
    size: tuple[int, int], target: tuple[int, int], interpolation: str, mode: str, edges: list[float]
) -> None:
    left, right = sorted(np.float32(edge * size[0]) for edge in edges[:2])
    top, bottom = sorted(np.float32(edge * size[1]) for edge in edges[2:])
    box = (float(left), float(top), float(right), float(bottom))
    # Pillow stores the box as 32-bit floats.
    if right - left < 0.1 or bottom - top < 0.1:
        return
    off = steps(noise(*size, mode), target, interpolation, box)
    assert np.abs(off).max() <= (1 if interpolation == "bilinear" else 0)


def test_an_edge_that_rounding_puts_outside_is_inside() -> None:
    image = noise(341, 256)
    for start in np.random.default_rng(0).uniform(0, 200, 2000):
        left = float(start)
        resampling.resized(image, (2, 2), "bilinear", (left, left, 341.0, 256.0))
        beyond = math.nextafter(256.0, 300)
        resampling.resized(image, (2, 2), "bilinear", (-1e-14, left, 341.0, beyond))


def test_nothing_to_resize_is_a_crop() -> None:
    image = noise(500, 375)
    box = (20.0, 30.0, 244.0, 254.0)
    assert not steps(image, (224, 224), "bilinear", box).any()
    assert (
        np.asarray(resampling.resized(image, (224, 224), "bicubic", box)) == np.asarray(image)[30:254, 20:244]
    ).all()


@pytest.fixture
def without_the_library(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "cykooz_resizer", None)
    resampling.library.cache_clear()
    yield
    resampling.library.cache_clear()


@pytest.mark.usefixtures("without_the_library")
@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize(("size", "box"), BOXES)
def test_without_the_library_pillow_resizes(mode: str, size: tuple[int, int], box: resampling.Box) -> None:
    assert not steps(noise(500, 375, mode), size, "bilinear", box).any()


@pytest.mark.usefixtures("without_the_library")
def test_that_the_library_is_missing_is_logged_once_with_the_extra_that_brings_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    for _ in range(2):
        resampling.library()
    assert caplog.text.count('pip install "cnnserve[fast]"') == 1
