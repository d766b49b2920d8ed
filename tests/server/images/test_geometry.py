"""Resizing and cropping without the pixels that the crop drops: as with all of them, bit for bit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cnnserve.images import geometry
from cnnserve.images.resampling import PILLOW
from cnnserve.repository.manifest import Resize

SIZES = st.tuples(st.integers(1, 90), st.integers(1, 90))


def noise(width: int, height: int, darkest: int = 0, brightest: int = 255) -> Image.Image:
    random = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(random.integers(darkest, brightest + 1, (height, width, 3), np.uint8))


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


def cropped(image: Image.Image, height: int, width: int) -> np.ndarray:
    """The centre, found on an array: padded with black first, as torchvision does."""
    array = pixels(image)
    missing = [max(0, size - have) for size, have in zip((height, width), array.shape, strict=False)]
    array = np.pad(array, [(gap // 2, gap - gap // 2) for gap in missing] + [(0, 0)])
    top, left = round((array.shape[0] - height) / 2), round((array.shape[1] - width) / 2)
    return array[top : top + height, left : left + width]


@pytest.mark.parametrize(
    ("size", "mode", "target", "expected"),
    [
        ((640, 480), "shorter", (256,), (341, 256)),
        ((480, 640), "shorter", (256,), (256, 341)),
        ((500, 500), "shorter", (256,), (256, 256)),
        ((3, 2), "shorter", (1,), (1, 1)),
        ((999, 1000), "shorter", (500,), (500, 500)),
        ((10, 20), "exact", (30, 40), (40, 30)),
    ],
)
def test_the_size_after_a_resize(
    size: tuple[int, int], mode: str, target: tuple[int, ...], expected: tuple[int, int]
) -> None:
    assert geometry.resized_size(size, Resize(mode, target)) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size", "resized", "expected"),
    [((10, 20), (5, 5), 200), ((10, 20), (30, 5), 600), ((10, 20), (30, 40), 1200), ((10, 2), (3, 50), 150)],
)
def test_the_most_pixels_on_the_way(size: tuple[int, int], resized: tuple[int, int], expected: int) -> None:
    assert geometry.most_pixels(size, resized) == expected


@given(SIZES, SIZES)
def test_the_centre_is_padded_with_black(size: tuple[int, int], crop: tuple[int, int]) -> None:
    image = noise(*size)
    np.testing.assert_array_equal(pixels(geometry.center_crop(image, *crop)), cropped(image, *crop))


@given(SIZES, SIZES, SIZES | st.none(), st.sampled_from(["bilinear", "bicubic"]))
def test_a_crop_is_that_of_the_whole_resized_picture(
    size: tuple[int, int], resized: tuple[int, int], crop: tuple[int, int] | None, interpolation: str
) -> None:
    image = noise(*size)
    whole = image if size == resized else image.resize(resized, PILLOW[interpolation])
    expected = pixels(whole) if crop is None else cropped(whole, *crop)
    result = geometry.resize_and_crop(image, resized, interpolation, crop)
    np.testing.assert_array_equal(pixels(result), expected)


@given(SIZES, SIZES, st.sampled_from(["bilinear", "bicubic"]))
def test_the_fast_way_is_as_large_and_about_the_same(
    size: tuple[int, int], crop: tuple[int, int], interpolation: str
) -> None:
    # Nothing near 0 or 255, where Pillow cuts off between its passes what bicubic weights make of it.
    image = noise(*size, 80, 175)
    resized = (size[0] + 7, max(1, size[1] - 3))
    exact = geometry.resize_and_crop(image, resized, interpolation, crop)
    fast = geometry.resize_and_crop_box(image, (0, 0, *size), resized, interpolation, crop)
    assert fast.size == exact.size == (crop[1], crop[0])
    assert np.abs(pixels(fast).astype(int) - pixels(exact)).max() <= 4


@pytest.mark.parametrize("crop", [None, (9, 11), (30, 30), (1, 40)])
def test_the_fast_way_leaves_what_has_the_size_already(crop: tuple[int, int] | None) -> None:
    image = noise(20, 16)
    result = geometry.resize_and_crop_box(image, (0, 0, 20, 16), (20, 16), "bilinear", crop)
    expected = pixels(image) if crop is None else cropped(image, *crop)
    np.testing.assert_array_equal(pixels(result), expected)


def test_the_fast_way_sees_the_box_only() -> None:
    image = noise(40, 40)
    image.paste((255, 0, 0), (0, 0, 20, 40))
    right = geometry.resize_and_crop_box(image, (20, 0, 40, 40), (10, 20), "bilinear", None)
    alone = geometry.resize_and_crop_box(image.crop((20, 0, 40, 40)), (0, 0, 20, 40), (10, 20), "bilinear", None)
    # At its edge the filter reaches beyond the box.
    assert np.abs(pixels(right)[:, 1:].astype(int) - pixels(alone)[:, 1:]).max() <= 2


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("size", "resized", "crop"),
    [
        ((400, 300), (40, 60), (20, 20)),
        ((400, 300), (40, 60), (1, 40)),
        ((300, 90), (30, 60), (2, 30)),
        ((90, 300), (300, 300), (3, 3)),
        ((30, 40), (300, 380), (5, 5)),
    ],
)
def test_rows_outside_the_crop_are_left_out_with_care(
    size: tuple[int, int], resized: tuple[int, int], crop: tuple[int, int], interpolation: str
) -> None:
    image = noise(*size)
    expected = cropped(image.resize(resized, PILLOW[interpolation]), *crop)
    np.testing.assert_array_equal(pixels(geometry.resize_and_crop(image, resized, interpolation, crop)), expected)


@pytest.mark.parametrize("box", [(0, 0, 40, 80), (10, 0, 70, 80), (0, 20, 80, 60), (13, 7, 61, 71)])
@pytest.mark.parametrize("crop", [None, (20, 30), (24, 32), (22, 12)])
def test_the_fast_way_scales_the_box_only(box: tuple[int, int, int, int], crop: tuple[int, int] | None) -> None:
    image = noise(80, 80, 80, 175)
    resized = (32, 24)
    result = geometry.resize_and_crop_box(image, box, resized, "bilinear", crop)
    alone = geometry.resize_and_crop(image.crop(box), resized, "bilinear", crop)
    assert result.size == alone.size
    # At the edges of the box the filter reaches beyond it.
    assert np.abs(pixels(result).astype(int) - pixels(alone))[3:-3, 3:-3].max(initial=0) <= 4


def test_a_box_of_an_image_that_has_the_size_already_is_scaled() -> None:
    image = noise(32, 24, 80, 175)
    result = geometry.resize_and_crop_box(image, (0, 0, 16, 24), (32, 24), "bilinear", None)
    expected = image.resize((32, 24), PILLOW["bilinear"], (0, 0, 16, 24))
    assert np.abs(pixels(result).astype(int) - pixels(expected)).max() <= 4
