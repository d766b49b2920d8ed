"""OpenCV's resize, for networks that were trained behind it; the only importer of cv2.

OpenCV is an extra because few networks need it. Only the resize is OpenCV's: Pillow decodes the file, and makes it grey
where that is asked for.
"""

import functools
from collections.abc import Mapping
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from cnnserve import extras
from cnnserve.errors import ModelLoadFailed

# OpenCV's names of its interpolations. All but "area" look at the same few pixels however much an image shrinks.
FLAGS: Mapping[str, str] = {
    "nearest": "INTER_NEAREST",
    "bilinear": "INTER_LINEAR",
    "bicubic": "INTER_CUBIC",
    "lanczos": "INTER_LANCZOS4",
    "area": "INTER_AREA",
}


@functools.cache
def library() -> ModuleType:
    """Returns cv2. Raises `ModelLoadFailed` naming the extra if it is not installed."""
    try:
        import cv2  # noqa: PLC0415  (an extra: only models that need it wait for it)
    except ImportError as error:
        raise ModelLoadFailed(
            f"this model's images are resized by OpenCV, which cannot be imported ({error}): {extras.install('opencv')}"
        ) from error
    # The server decodes images on threads of its own, as many as there are CPUs.
    cv2.setNumThreads(1)
    return cv2


def resized(pixels: NDArray[np.uint8], size: tuple[int, int], interpolation: str) -> NDArray[np.uint8]:
    """Returns the pixels (height, width[, channels]) resized to `size` (width, height)."""
    cv2 = library()
    if (pixels.shape[1], pixels.shape[0]) == size:
        return pixels
    made: NDArray[np.uint8] = cv2.resize(pixels, size, interpolation=getattr(cv2, FLAGS[interpolation]))
    return made
