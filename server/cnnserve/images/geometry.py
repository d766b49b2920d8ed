"""Resizes an image and crops its centre, bit for bit as torchvision does with PIL images.

Pixels that the crop drops are not computed. This does not change the others: Pillow resizes in two passes, first along
the rows, then along the columns (Pillow 13: the other way round for tall images, python-pillow/Pillow#9549), and rounds
to 8 bits in between. A pass may leave out whole rows or columns that are not needed later, if its weights are those of
the whole image.
"""

import math

from PIL import Image

from cnnserve.images import resampling
from cnnserve.images.resampling import Box, Size
from cnnserve.repository.manifest import Resize

_SUPPORTS = {"bilinear": 1.0, "bicubic": 2.0}


def resized_size(size: Size, resize: Resize) -> Size:
    """Returns (width, height) after `resize`. The longer side is rounded down, as in torchvision."""
    if resize.mode == "exact":
        return resize.size[1], resize.size[0]
    width, height = size
    target = resize.size[0]
    if width <= height:
        return target, int(target * height / width)
    return int(target * width / height), target


def most_pixels(size: Size, resized: Size) -> int:
    """Returns the number of pixels of the largest image while resizing from `size` to `resized` (width, height)."""
    # Between the two passes, in most cases, the image has the new width and the old height.
    return max(math.prod(size), resized[0] * size[1], math.prod(resized))


def resize_and_crop(image: Image.Image, resized: Size, interpolation: str, crop: tuple[int, int] | None) -> Image.Image:
    """Resizes `image` to `resized` (width, height) and returns its centre of size `crop` (height, width).

    If the crop is larger than the image, it is filled up with black.
    """
    width, height = resized
    method = resampling.PILLOW[interpolation]
    if crop is None or crop[1] > width or crop[0] > height or _columns_first(image.size, resized):
        whole = image if image.size == resized else image.resize(resized, method)
        return whole if crop is None else center_crop(whole, *crop)
    left, top = _offset(width, crop[1]), _offset(height, crop[0])
    right, bottom = left + crop[1], top + crop[0]
    if image.width != width:
        first, last = _source_rows(image.height, height, top, bottom, _SUPPORTS[interpolation])
        rows = image.crop((0, first, image.width, last)).resize((width, last - first), method)
        # The second pass needs an image of the full height, because its weights depend on the height. It does not
        # read the rows that this adds.
        image = rows.crop((left, -first, right, image.height - first))
        left, right = 0, crop[1]
    if image.height != height:
        image = image.crop((left, 0, right, image.height)).resize((crop[1], height), method)
        left, right = 0, crop[1]
    return image.crop((left, top, right, bottom))


def resize_and_crop_box(
    image: Image.Image, box: Box, resized: Size, interpolation: str, crop: tuple[int, int] | None
) -> Image.Image:
    """Does the same with the `box` (left, top, right, bottom) of an image, faster, but not bit for bit.

    It computes only the pixels inside the crop, with `resampling.resized`.
    """
    width, height = resized
    if crop is None or crop[1] > width or crop[0] > height:
        if image.size != resized or box != (0, 0, *resized):
            image = resampling.resized(image, resized, interpolation, box)
        return image if crop is None else center_crop(image, *crop)
    left, top = _offset(width, crop[1]), _offset(height, crop[0])
    x, y = (box[2] - box[0]) / width, (box[3] - box[1]) / height
    part = (box[0] + left * x, box[1] + top * y, box[0] + (left + crop[1]) * x, box[1] + (top + crop[0]) * y)
    return resampling.resized(image, (crop[1], crop[0]), interpolation, part)


def center_crop(image: Image.Image, height: int, width: int) -> Image.Image:
    """Returns the centre of an image. A smaller image is padded with black, as in torchvision."""
    if image.size == (width, height):
        return image
    if image.width < width or image.height < height:
        pad_left, pad_top = max((width - image.width) // 2, 0), max((height - image.height) // 2, 0)
        padded = Image.new(image.mode, (max(width, image.width), max(height, image.height)))
        padded.paste(image, (pad_left, pad_top))
        return center_crop(padded, height, width)
    left, top = _offset(image.width, width), _offset(image.height, height)
    return image.crop((left, top, left + width, top + height))


def _columns_first(size: Size, resized: Size) -> bool:
    """Returns whether some version of Pillow resizes along the columns first.

    That is the case if the height shrinks by more than twice as many pixels as the width.
    """
    shrinks = size[1] - resized[1]
    return shrinks > 0 and shrinks > 2 * (size[0] - resized[0])


def _offset(size: int, crop: int) -> int:
    # torchvision rounds halves to even here.
    return round((size - crop) / 2)


def _source_rows(source: int, target: int, top: int, bottom: int, support: float) -> tuple[int, int]:
    """Returns the first and the last + 1 of the source rows that the rows from `top` to `bottom` of the result need.

    `source` and `target` are the heights before and after the pass.
    """
    scale = source / target
    reach = support * max(scale, 1.0) + 1
    return max(0, math.floor(top * scale - reach)), min(source, math.ceil(bottom * scale + reach))
