"""Sizes and places of an image on its way to a row, each computed as the library does whose pixels are wanted.

Sizes are (width, height) in pixels; sizes in a `Preprocessing` are (height, width).

- "shorter" of one size N: the shorter side becomes N, the longer side is truncated to whole pixels, as torchvision's
  `Resize(N)` does. Of two sizes: the image just covers them, both sides are rounded, as timm's `ResizeKeepRatio` does.
- "exact": the image is stretched to the size.
- "letterbox": the image just fits into the size, both sides are rounded, as timm's crop mode "border" does, and with
  `library` "opencv" as Ultralytics' `LetterBox` does (the two differ if a side falls on half a pixel).
- "fit": the height becomes the first size, the width follows from the ratio, rounded up to whole pixels; a width above
  the second size, if there is one, becomes the second size, as PaddleOCR does.

The result has the size of the crop; without a crop that of "exact", "letterbox" and "fit". What the resized image does
not cover is padded: on both sides alike, with the odd pixel on the right and below, or with `align` "start" on the
right and below only. What is too large is cropped to its centre. "fit" pads and crops its width on the right only.
`crop_rounding` says where half a pixel goes if the margins of the crop are odd: "even" rounds the left and upper margin
to an even number, as torchvision and timm do, and "down" rounds that margin down, as Hugging Face transformers do.
"""

import math
from dataclasses import dataclass

from cnnserve.images.resampling import Size
from cnnserve.repository.manifest import Preprocessing, Resize

# Left, top, right and bottom, in whole pixels.
Part = tuple[int, int, int, int]


@dataclass(frozen=True)
class Placement:
    """How a resized image lies in the result: `resized` is its size, `canvas` the size of the result.

    Pixel (0, 0) of the resized image lies at (`left`, `top`) of the result; negative values crop it.
    """

    resized: Size
    canvas: Size
    left: int
    top: int

    @property
    def part(self) -> Part:
        """The part of the resized image that the result shows."""
        left, top = max(0, -self.left), max(0, -self.top)
        right = min(self.resized[0], self.canvas[0] - self.left)
        bottom = min(self.resized[1], self.canvas[1] - self.top)
        return left, top, right, bottom

    @property
    def padded(self) -> bool:
        """Whether the resized image covers the result only in part."""
        left, top, right, bottom = self.part
        return (right - left, bottom - top) != self.canvas


def place(size: Size, spec: Preprocessing) -> Placement:
    """Returns where an image of `size` goes."""
    resize, align = spec.resize, spec.pad.align if spec.pad else "center"
    resized = resized_size(size, resize) if resize else size
    if spec.crop is not None:
        canvas = spec.crop[1], spec.crop[0]
    elif resize is not None and resize.mode in ("letterbox", "fit"):
        canvas = resize.size[1], resize.size[0]
    else:
        canvas = resized
    down = spec.crop_rounding == "down"
    # The image in a "fit" begins at the left, whether it is padded or cropped.
    left = 0 if resize is not None and resize.mode == "fit" else _start(canvas[0] - resized[0], align, down=down)
    return Placement(resized, canvas, left, _start(canvas[1] - resized[1], align, down=down))


def resized_size(size: Size, resize: Resize) -> Size:
    """Returns the size of an image after `resize`, before it is cropped or padded."""
    width, height = size
    target, last = resize.size[0], resize.size[-1]
    if resize.mode == "exact":
        return last, target
    if resize.mode == "fit":
        wide = math.ceil(target * (width / height))
        return wide if len(resize.size) == 1 else min(last, wide), target
    if resize.mode == "letterbox":
        return _letterbox(size, (last, target), resize.library)
    if len(resize.size) == 2:
        ratio = min(height / target, width / last)
        return round(width / ratio), round(height / ratio)
    if width <= height:
        return target, int(target * height / width)
    return int(target * width / height), target


def most_pixels(size: Size, resized: Size) -> int:
    """Returns the number of pixels of the largest image while resizing from `size` to `resized`."""
    # Between the two passes, in most cases, the image has the new width and the old height.
    return max(math.prod(size), resized[0] * size[1], math.prod(resized))


def _letterbox(size: Size, box: Size, library: str) -> Size:
    if library == "opencv":
        factor = min(box[1] / size[1], box[0] / size[0])
        width, height = round(size[0] * factor), round(size[1] * factor)
    else:
        ratio = max(size[1] / box[1], size[0] / box[0])
        width, height = round(size[0] / ratio), round(size[1] / ratio)
    # A very elongated image keeps one row or one column.
    return max(1, width), max(1, height)


def _start(margin: int, align: str, *, down: bool) -> int:
    """Returns where an image begins in its place, which is larger by `margin`; negative values crop it."""
    if margin >= 0:
        if align == "start":
            return 0
        return -(-margin // 2) if down else margin // 2
    return -(-margin // 2) if down else -round(-margin / 2)
