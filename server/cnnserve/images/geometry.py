"""Resize and centre crop, bit for bit as torchvision does them on PIL images, without the pixels that the crop drops.

Pillow resizes in two passes with 8 bits in between: along the rows, then along the columns (Pillow 13: the other way
round for tall pictures, python-pillow/Pillow#9549). So a pass may leave out whole rows or columns that nobody asks for,
as long as its weights are those of the whole picture.
"""

import math

from PIL import Image

from cnnserve.images import resampling
from cnnserve.images.resampling import Box, Size
from cnnserve.repository.manifest import Resize

_SUPPORTS = {"bilinear": 1.0, "bicubic": 2.0}


def resized_size(size: Size, resize: Resize) -> Size:
    """(width, height) after `resize`; the longer side is truncated, as torchvision does."""
    if resize.mode == "exact":
        return resize.size[1], resize.size[0]
    width, height = size
    target = resize.size[0]
    if width <= height:
        return target, int(target * height / width)
    return int(target * width / height), target


def most_pixels(size: Size, resized: Size) -> int:
    """Pixels of the largest picture on the way from `size` to `resized` (width, height)."""
    # Between the two passes it has, in most cases, the new width and the old height.
    return max(math.prod(size), resized[0] * size[1], math.prod(resized))


def resize_and_crop(image: Image.Image, resized: Size, interpolation: str, crop: tuple[int, int] | None) -> Image.Image:
    """`image` at the size `resized` (width, height), then its centre of `crop` (height, width), padded with black."""
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
        # The columns of the crop, with rows of no meaning where the second pass does not look.
        image = rows.crop((left, -first, right, image.height - first))
        left, right = 0, crop[1]
    if image.height != height:
        image = image.crop((left, 0, right, image.height)).resize((crop[1], height), method)
        left, right = 0, crop[1]
    return image.crop((left, top, right, bottom))


def resize_and_crop_box(
    image: Image.Image, box: Box, resized: Size, interpolation: str, crop: tuple[int, int] | None
) -> Image.Image:
    """The same of the `box` (left, top, right, bottom) of an image, in less time; the last bit may differ.

    Nothing but the crop is computed, and by `resampling`.
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
    """The centre of an image; one that is smaller is padded with black, as torchvision does."""
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
    """Whether some Pillow begins with the columns: where the height shrinks by more than twice what the width does."""
    shrinks = size[1] - resized[1]
    return shrinks > 0 and shrinks > 2 * (size[0] - resized[0])


def _offset(size: int, crop: int) -> int:
    # torchvision rounds half to even here.
    return round((size - crop) / 2)


def _source_rows(source: int, target: int, top: int, bottom: int, support: float) -> tuple[int, int]:
    """First and last + 1 of the rows that rows `top` to `bottom` of a pass from `source` to `target` are made of."""
    scale = source / target
    reach = support * max(scale, 1.0) + 1
    return max(0, math.floor(top * scale - reach)), min(source, math.ceil(bottom * scale + reach))
