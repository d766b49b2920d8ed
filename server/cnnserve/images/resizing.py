"""Resizes an image, bit for bit as Pillow or OpenCV does.

Pixels that the crop drops are not computed. This does not change the others: Pillow resizes in two passes, first along
the rows, then along the columns (Pillow 13: the other way round for tall images, python-pillow/Pillow#9549), and rounds
to 8 bits in between. A pass may leave out whole rows or columns that are not needed later, if its weights are those of
the whole image.
"""

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cnnserve.images import opencv, resampling
from cnnserve.images.geometry import Part, Placement
from cnnserve.images.resampling import Box, Size
from cnnserve.repository.manifest import Resize

_FAST = ("bilinear", "bicubic", "lanczos")
_DEFAULT = Resize("exact", (1, 1))


def exact(image: Image.Image, placement: Placement, resize: Resize | None) -> NDArray[np.uint8]:
    """Returns the pixels (height, width[, channels]) of the part that `placement` shows, with the library's bits."""
    resize = resize or _DEFAULT
    if resize.library == "opencv":
        left, top, right, bottom = placement.part
        return opencv.resized(np.asarray(image), placement.resized, resize.interpolation)[top:bottom, left:right]
    return np.asarray(_by_pillow(image, placement.resized, placement.part, resize.interpolation))


def fast(image: Image.Image, box: Box, placement: Placement, resize: Resize | None) -> NDArray[np.uint8]:
    """Returns the same of the `box` (left, top, right, bottom) of an image, in less time; the last bit may differ.

    Nothing but the visible part is computed, and by `resampling`.
    """
    resize = resize or _DEFAULT
    left, top, right, bottom = placement.part
    width, height = placement.resized
    size = right - left, bottom - top
    part = box
    if size != placement.resized:
        x, y = (box[2] - box[0]) / width, (box[3] - box[1]) / height
        part = (box[0] + left * x, box[1] + top * y, box[0] + right * x, box[1] + bottom * y)
    if (image.size, part) == (size, (0.0, 0.0, *size)):
        return np.asarray(image)
    return np.asarray(resampling.resized(image, size, resize.interpolation, part))


def has_fast_way(resize: Resize | None) -> bool:
    """Whether `fast` comes close to `exact`: narrow filters and OpenCV show that a JPEG was decoded smaller."""
    return resize is None or (resize.library == "pillow" and resize.interpolation in _FAST)


def _by_pillow(image: Image.Image, resized: Size, part: Part, interpolation: str) -> Image.Image:
    left, top, right, bottom = part
    width, height = resized
    method = resampling.PILLOW[interpolation]
    if part == (0, 0, *resized) or interpolation == "nearest" or _columns_first(image.size, resized):
        whole = image if image.size == resized else image.resize(resized, method)
        return whole.crop(part)
    if image.width != width:
        support = resampling.SUPPORTS[interpolation]
        first, last = _source_rows(image.height, height, top, bottom, support)
        rows = image.crop((0, first, image.width, last)).resize((width, last - first), method)
        # The second pass needs an image of the full height, because its weights depend on the height. It does not
        # read the rows that this adds.
        image = rows.crop((left, -first, right, image.height - first))
        left, right = 0, right - left
    if image.height != height:
        image = image.crop((left, 0, right, image.height)).resize((right - left, height), method)
        left, right = 0, right - left
    return image.crop((left, top, right, bottom))


def _columns_first(size: Size, resized: Size) -> bool:
    """Returns whether some version of Pillow resizes along the columns first.

    That is the case if the height shrinks by more than twice as many pixels as the width.
    """
    shrinks = size[1] - resized[1]
    return shrinks > 0 and shrinks > 2 * (size[0] - resized[0])


def _source_rows(source: int, target: int, top: int, bottom: int, support: float) -> tuple[int, int]:
    """Returns the first and the last + 1 of the source rows that the rows from `top` to `bottom` of the result need.

    `source` and `target` are the heights before and after the pass.
    """
    scale = source / target
    reach = support * max(scale, 1.0) + 1
    return max(0, math.floor(top * scale - reach)), min(source, math.ceil(bottom * scale + reach))
