"""Resizing and cropping without the pixels that the crop drops: as with all of them, bit for bit."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cnnserve.images import geometry, resizing
from cnnserve.images.geometry import Placement
from cnnserve.images.preprocessing import ImageOptions, Preprocessor, RawImage
from cnnserve.images.resampling import PILLOW
from cnnserve.repository.manifest import Pad, Preprocessing, Resize, TensorInfo

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


@pytest.mark.parametrize(
    ("size", "mode", "target", "library", "expected"),
    [
        # Just covered: 2 x 1.5 of the height, 2 x 2 of the width.
        ((200, 100), "shorter", (150, 200), "pillow", (300, 150)),
        ((100, 100), "shorter", (150, 200), "pillow", (200, 200)),
        ((640, 427), "letterbox", (224, 224), "pillow", (224, 149)),
        ((427, 640), "letterbox", (224, 224), "opencv", (149, 224)),
        ((100, 10), "letterbox", (200, 50), "pillow", (50, 5)),
        ((9000, 2), "letterbox", (224, 224), "pillow", (224, 1)),
        ((2, 9000), "letterbox", (224, 224), "opencv", (1, 224)),
        ((100, 30), "fit", (48, 192), "opencv", (160, 48)),
        ((100, 50), "letterbox", (20, 30), "pillow", (30, 15)),
        ((50, 100), "letterbox", (20, 30), "pillow", (10, 20)),
        ((101, 30), "fit", (48, 192), "opencv", (162, 48)),
        ((121, 30), "fit", (48, 192), "opencv", (192, 48)),
        ((121, 30), "fit", (48,), "pillow", (194, 48)),
    ],
)
def test_the_size_after_a_resize_that_keeps_the_ratio(
    size: tuple[int, int], mode: Any, target: tuple[int, ...], library: Any, expected: tuple[int, int]
) -> None:
    assert geometry.resized_size(size, Resize(mode, target, library=library)) == expected


def spec(resize: Resize | None, crop: tuple[int, int] | None = None, **more: Any) -> Preprocessing:
    return Preprocessing("RGB", resize, crop, (0.0,) * 3, (1.0,) * 3, "graph", **more)


START = Pad((0.0,) * 3, "start")
LETTERBOX, FIT = Resize("letterbox", (20, 30)), Resize("fit", (20, 30))


@pytest.mark.parametrize(
    ("size", "wanted", "expected"),
    [
        ((11, 13), spec(None), Placement((11, 13), (11, 13), 0, 0)),
        # Margins of 5 and 3 to crop, of 5 and 3 to pad.
        ((15, 13), spec(None, (10, 10)), Placement((15, 13), (10, 10), -2, -2)),
        ((15, 13), spec(None, (10, 10), crop_rounding="down"), Placement((15, 13), (10, 10), -2, -1)),
        ((15, 13), spec(None, (16, 20)), Placement((15, 13), (20, 16), 2, 1)),
        ((15, 13), spec(None, (16, 20), crop_rounding="down"), Placement((15, 13), (20, 16), 3, 2)),
        ((15, 13), spec(None, (16, 20), pad=START), Placement((15, 13), (20, 16), 0, 0)),
        ((15, 13), spec(None, (10, 10), pad=START), Placement((15, 13), (10, 10), -2, -2)),
        ((30, 15), spec(LETTERBOX), Placement((30, 15), (30, 20), 0, 2)),
        ((10, 20), spec(LETTERBOX, pad=START), Placement((10, 20), (30, 20), 0, 0)),
        ((10, 20), spec(LETTERBOX, (18, 18)), Placement((10, 20), (18, 18), 4, -1)),
        ((10, 20), spec(FIT), Placement((10, 20), (30, 20), 0, 0)),
        ((10, 20), spec(FIT, (16, 8)), Placement((10, 20), (8, 16), 0, -2)),
    ],
)
def test_where_an_image_lies(size: tuple[int, int], wanted: Preprocessing, expected: Placement) -> None:
    assert geometry.place(size, wanted) == expected


@given(SIZES, SIZES)
def test_a_part_lies_in_both(size: tuple[int, int], crop: tuple[int, int]) -> None:
    placed = geometry.place(size, spec(None, crop))
    left, top, right, bottom = placed.part
    assert (right - left, bottom - top) == (min(size[0], crop[1]), min(size[1], crop[0]))
    assert placed.padded == (size[0] < crop[1] or size[1] < crop[0])


def made(
    image: Image.Image, resized: tuple[int, int], name: Any, crop: tuple[int, int] | None, *, fast: bool = False
) -> np.ndarray:
    """The image at a size, its centre, padded with black."""
    wanted = spec(Resize("exact", resized[::-1], name), crop)
    height, width = crop or resized[::-1]
    tensor = TensorInfo("image", "UINT8", (height, width, 3), "NHWC")
    return Preprocessor(wanted, tensor, ImageOptions(fast=fast)).raw(
        RawImage(image.tobytes(), image.height, image.width, 3)
    )


@given(SIZES, SIZES)
def test_the_centre_is_padded_with_black(size: tuple[int, int], crop: tuple[int, int]) -> None:
    image = noise(*size)
    np.testing.assert_array_equal(made(image, size, "bilinear", crop), cropped(image, *crop))


@given(SIZES, SIZES, SIZES | st.none(), st.sampled_from(sorted(PILLOW)))
def test_a_crop_is_that_of_the_whole_resized_picture(
    size: tuple[int, int], resized: tuple[int, int], crop: tuple[int, int] | None, interpolation: str
) -> None:
    image = noise(*size)
    whole = image if size == resized else image.resize(resized, PILLOW[interpolation])
    expected = pixels(whole) if crop is None else cropped(whole, *crop)
    np.testing.assert_array_equal(made(image, resized, interpolation, crop), expected)


@given(SIZES, SIZES, st.sampled_from(["bilinear", "bicubic", "lanczos"]))
def test_the_fast_way_is_as_large_and_about_the_same(
    size: tuple[int, int], crop: tuple[int, int], interpolation: str
) -> None:
    # Nothing near 0 or 255, where Pillow cuts off between its passes what the wide filters' weights make of it.
    image = noise(*size, 80, 175)
    resized = (size[0] + 7, max(1, size[1] - 3))
    exact = made(image, resized, interpolation, crop)
    fast = made(image, resized, interpolation, crop, fast=True)
    assert fast.shape == exact.shape == (*crop, 3)
    assert np.abs(fast.astype(int) - exact).max() <= (4 if interpolation != "lanczos" else 8)


@pytest.mark.parametrize("crop", [None, (9, 11), (30, 30), (1, 40)])
def test_the_fast_way_leaves_what_has_the_size_already(crop: tuple[int, int] | None) -> None:
    image = noise(20, 16)
    result = made(image, (20, 16), "bilinear", crop, fast=True)
    np.testing.assert_array_equal(result, pixels(image) if crop is None else cropped(image, *crop))


def test_the_fast_way_sees_the_box_only() -> None:
    image = noise(40, 40)
    image.paste((255, 0, 0), (0, 0, 20, 40))
    whole, resize = Placement((10, 20), (10, 20), 0, 0), Resize("exact", (20, 10))
    right = resizing.fast(image, (20, 0, 40, 40), whole, resize)
    alone = resizing.fast(image.crop((20, 0, 40, 40)), (0, 0, 20, 40), whole, resize)
    # At its edge the filter reaches beyond the box.
    assert np.abs(right[:, 1:].astype(int) - alone[:, 1:]).max() <= 2
