"""A row of a model's input as a picture: the pixels that went in come out, whatever the layout and the values."""

import io
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cnnserve.images.preprocessing import Preprocessor
from cnnserve.repository.manifest import Preprocessing, TensorInfo
from support import png

PIXELS = np.random.default_rng(3).integers(0, 256, (6, 7, 3), np.uint8)


def shown(row: Preprocessor, image: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(row.picture(row.row(image)))))


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize(
    ("datatype", "normalize"),
    [("UINT8", "graph"), ("UINT8", "none"), ("FP32", "host"), ("FP32", "none"), ("FP16", "host")],
)
@pytest.mark.parametrize("color", ["RGB", "BGR"])
def test_the_pixels_come_back(
    layout: Literal["NHWC", "NCHW"], datatype: str, normalize: Literal["graph", "host", "none"], color: str
) -> None:
    spec = Preprocessing(color, None, (6, 7), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), normalize)  # type: ignore[arg-type]
    shape = (6, 7, 3) if layout == "NHWC" else (3, 6, 7)
    preprocessor = Preprocessor(spec, TensorInfo("image", datatype, shape, layout))
    assert preprocessor.channels_last == (layout == "NHWC")
    np.testing.assert_array_equal(shown(preprocessor, png(PIXELS)), PIXELS)


def test_grey_stays_grey() -> None:
    spec = Preprocessing("L", None, (6, 7), (0.3,), (0.3,), "host")
    preprocessor = Preprocessor(spec, TensorInfo("image", "FP32", (1, 6, 7), "NCHW"))
    np.testing.assert_array_equal(shown(preprocessor, png(PIXELS[:, :, 0])), PIXELS[:, :, 0])
