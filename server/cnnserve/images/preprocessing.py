"""Turns an encoded or raw image into one row of a model's input, exactly as the manifest says.

The default is torchvision's PIL pipeline: `Resize`, `CenterCrop`, `ToTensor`, `Normalize`. `geometry` says what each
mode does. The exporter measures parity with this module, too, so parity holds for the preprocessing on the server.
"""

import contextlib
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cnnserve.datatypes import NUMPY_TYPES
from cnnserve.errors import InvalidInput
from cnnserve.images import geometry, memory_use, opencv, resampling, resizing, showing
from cnnserve.images.decoding import Mode, decode, to_mode
from cnnserve.images.decoding_times import Work
from cnnserve.images.geometry import Placement
from cnnserve.images.header import FORMATS, check_structure, read_header
from cnnserve.images.resampling import Box, Size
from cnnserve.process.admission import MemoryBudget
from cnnserve.repository.manifest import Preprocessing, TensorInfo

__all__ = ["FORMATS", "ImageOptions", "ImageSource", "Preprocessor", "RawImage"]

DEFAULT_PIXEL_LIMIT = 50_000_000
# The parameter of config.pbtxt that changes the limit.
PIXEL_LIMIT = "cnnserve.max_pixels"

_RAW_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
# If a file is no larger, and its image never has more pixels, reading it takes less time than waking a thread.
_QUICK_PIXELS = 64 * 64
_QUICK_BYTES = 16 * 2**10
# The longest side of a JPEG or a GIF. PNGs and BMPs may state millions of pixels by one, for which resizing computes
# millions of weights, without giving the interpreter back.
_LONGEST_SIDE = 65_535
# torchvision divides by 255; a product with 1/255 would differ in the last bit.
_BY_255 = 1 / 255


@dataclass(frozen=True)
class RawImage:
    """Pixels as uint8, row by row, channels last: 1 channel for grey, 3 for RGB, 4 for RGBA."""

    data: bytes
    height: int
    width: int
    channels: int


# The bytes of a file, or pixels.
ImageSource = bytes | RawImage


@dataclass(frozen=True)
class ImageOptions:
    """Options of preprocessing.

    `fast` allows small differences from the exact pixels. `pixel_limit`: the most pixels that an image may have, also
    while it is resized.
    """

    fast: bool = False
    pixel_limit: int = DEFAULT_PIXEL_LIMIT


class Preprocessor:
    """Turns images into rows for one model. Thread-safe.

    `budget` counts the memory of the images that are being decoded; None: it is not counted.
    Raises `ModelLoadFailed` if the preprocessing needs OpenCV, which is not installed.
    """

    def __init__(
        self,
        spec: Preprocessing,
        tensor: TensorInfo,
        options: ImageOptions | None = None,
        budget: MemoryBudget | None = None,
    ) -> None:
        self._spec = spec
        self._tensor = tensor
        self._budget = budget
        self._mode: Mode = "L" if spec.color == "L" else "RGB"
        self.options = options or ImageOptions()
        # Importing the libraries takes time, so they are imported now and not during a request.
        if spec.resize is not None and spec.resize.library == "opencv":
            opencv.library()
        self._fast = self.options.fast and resizing.has_fast_way(spec.resize)
        if self._fast:
            resampling.library()

    def empty(self, count: int) -> NDArray[np.generic]:
        """Returns memory for `count` rows. Its values are undefined."""
        return np.empty((count, *self._tensor.shape), NUMPY_TYPES[self._tensor.datatype])

    def exact(self) -> "Preprocessor":
        """Returns the same preprocessor without `fast`."""
        return self._with(replace(self.options, fast=False))

    def for_golden_images(self) -> "Preprocessor":
        """Returns the same preprocessor with the usual limit of pixels, if its own limit for clients is smaller."""
        limit = max(self.options.pixel_limit, DEFAULT_PIXEL_LIMIT)
        return self._with(replace(self.options, pixel_limit=limit))

    def _with(self, options: ImageOptions) -> "Preprocessor":
        return Preprocessor(self._spec, self._tensor, options, self._budget)

    def row(self, image: ImageSource) -> NDArray[np.generic]:
        """Returns one row of the model's input, in the tensor's shape and type. Raises `InvalidInput`."""
        return self.encoded(image) if isinstance(image, bytes) else self.raw(image)

    def encoded(self, data: bytes) -> NDArray[np.generic]:
        """Returns one row from the bytes of a file. Raises `InvalidInput`."""
        header = read_header(data)
        self._check((header.width, header.height))
        check_structure(header, data, self.options.pixel_limit)
        upright, at_least = self._spec.exif_orientation, self._at_least()
        # A turned image that would be too large is refused before it is resized.
        may_turn = upright and self._most_pixels((header.height, header.width)) <= self.options.pixel_limit
        size = memory_use.encoded_bytes(
            header, self._spec, self._tensor, at_least=at_least, fast=self._fast, may_turn=may_turn
        )
        with self._holding(size, (header.width, header.height)):
            decoded = decode(data, header, self._mode, upright=upright, at_least=at_least)
            return self._row(decoded.image, decoded.size, decoded.box)

    def raw(self, image: RawImage) -> NDArray[np.generic]:
        """Returns one row from pixels. Raises `InvalidInput`."""
        self._check_raw(image)
        width, height = image.width, image.height
        size = memory_use.raw_bytes((width, height), self._spec, self._tensor, fast=self._fast)
        with self._holding(size, (width, height)):
            mode = _RAW_MODES[image.channels]
            pixels = Image.frombuffer(mode, (width, height), image.data, "raw", mode, 0, 1)
            return self._row(to_mode(pixels, self._mode), pixels.size, (0, 0, width, height))

    @property
    def channels_last(self) -> bool:
        """Whether rows are height x width x channels, not channels x height x width."""
        return self._tensor.layout != "NCHW"

    def picture(self, row: NDArray[np.generic]) -> bytes:
        """Returns a PNG of the pixels in a row of the model's input."""
        return showing.png(row, self._spec, self._tensor)

    def work(self, image: ImageSource) -> Work:
        """Returns what reading the image means, from its header. Takes microseconds."""
        try:
            if isinstance(image, RawImage):
                self._check_raw(image)
                pixels = self._most_pixels((image.width, image.height))
                return Work("raw", pixels, pixels <= _QUICK_PIXELS)
            header = read_header(image)
            size = (header.width, header.height)
            self._check(size)
        except InvalidInput:
            # What `row` will refuse at once is quick, and takes no time, whatever size it claims to have.
            return Work("", 0, is_quick=True)
        pixels = max(self._most_pixels(size), self._most_pixels(size[::-1]))
        kind = f"{header.format}{' in scans' if header.scans_at else ''}"
        return Work(kind, pixels, pixels <= _QUICK_PIXELS and len(image) <= _QUICK_BYTES)

    def _row(self, image: Image.Image, size: Size, box: Box) -> NDArray[np.generic]:
        """Returns the row of a decoded image. For `size` and `box` see `decoding.Decoded`."""
        spec = self._spec
        # Checked a second time, because turning the image may have swapped width and height.
        self._check(size)
        placement = geometry.place(size, spec)
        if self._fast:
            pixels = resizing.fast(image, box, placement, spec.resize)
        else:
            pixels = resizing.exact(image, placement, spec.resize)
        return to_tensor(pixels, spec, self._tensor, placement)

    def _resized(self, size: Size) -> Size:
        return geometry.resized_size(size, self._spec.resize) if self._spec.resize else size

    def _at_least(self) -> Size | None:
        """Returns the smallest size (width, height) at which a JPEG may be decoded; None: only its full size."""
        resize = self._spec.resize
        if resize is None or not self._fast:
            return None
        return resize.size[-1], resize.size[0]

    def _most_pixels(self, size: Size) -> int:
        return geometry.most_pixels(size, self._resized(size))

    def _check_raw(self, image: RawImage) -> None:
        height, width, channels = image.height, image.width, image.channels
        if channels not in _RAW_MODES:
            raise InvalidInput(f"the raw image has {channels} channels, expected 1 (grey), 3 (RGB) or 4 (RGBA)")
        if height < 1 or width < 1:
            raise InvalidInput(f"the raw image is {height}x{width} (height x width), expected at least 1x1")
        if len(image.data) != height * width * channels:
            raise InvalidInput(
                f"the raw image has {len(image.data)} bytes, expected {height * width * channels} "
                f"for {height}x{width}x{channels} (height x width x channels)"
            )
        self._check((width, height))

    def _check(self, size: Size) -> None:
        """Raises `InvalidInput` if a side is too long, or if the largest image while resizing has too many pixels."""
        limit = self.options.pixel_limit
        if max(size) > _LONGEST_SIDE and size[0] * size[1] <= limit:
            raise InvalidInput(
                f"the image has {size[0]}x{size[1]} pixels, a side may have {_LONGEST_SIDE:,}; send a less elongated "
                "image"
            )
        if size[0] * size[1] > limit:
            raise InvalidInput(
                f"the image has {size[0]}x{size[1]} pixels, this model's limit is {limit:,} pixels; "
                f"send a smaller image, or raise {PIXEL_LIMIT} in config.pbtxt"
            )
        most = self._most_pixels(size)
        if most > limit:
            width, height = self._resized(size)
            raise InvalidInput(
                f"resizing the image from {size[0]}x{size[1]} to {width}x{height} takes more pixels than this model's "
                f"limit of {limit:,}; send a smaller or less elongated image, or raise {PIXEL_LIMIT} in config.pbtxt"
            )

    def _holding(self, needed_bytes: int, size: Size) -> contextlib.AbstractContextManager[None]:
        # Quick images are not counted: they may be read on the event loop, which must not wait for memory.
        if self._budget is None or self._most_pixels(size) <= _QUICK_PIXELS:
            return contextlib.nullcontext()
        return self._budget.decoding(needed_bytes)


def to_tensor(
    pixels: NDArray[np.uint8], spec: Preprocessing, tensor: TensorInfo, placement: Placement | None = None
) -> NDArray[np.generic]:
    """Applies channel order, scale, normalisation, padding and layout to a resized uint8 image (H x W or H x W x C).

    `placement` says where the image lies in the row; if it is None, the image fills the row.
    """
    image = pixels[:, :, np.newaxis] if pixels.ndim == 2 else pixels
    if spec.color == "BGR":
        image = image[:, :, ::-1]
    values = _values(image, spec, tensor)
    if placement is not None and placement.padded:
        values = _padded(values, spec, tensor, placement)
    if tensor.layout == "NCHW":
        values = values.transpose(2, 0, 1)
    return np.ascontiguousarray(values)


def _values(image: NDArray[np.generic], spec: Preprocessing, tensor: TensorInfo) -> NDArray[np.generic]:
    """Scaled and normalised pixels, in the type of the tensor."""
    if tensor.datatype == "UINT8":
        return image.astype(np.uint8, copy=False)
    scaled: NDArray[np.float32] = image.astype(np.float32)
    if spec.scale == _BY_255:
        scaled /= np.float32(255)
    else:
        scaled *= np.float32(spec.scale)
    if spec.normalize == "host":
        scaled -= np.asarray(spec.mean, np.float32)
        scaled /= np.asarray(spec.std, np.float32)
    return scaled.astype(np.float16) if tensor.datatype == "FP16" else scaled


def _padded(
    values: NDArray[np.generic], spec: Preprocessing, tensor: TensorInfo, placement: Placement
) -> NDArray[np.generic]:
    channels = values.shape[2]
    # torchvision pads with black.
    color = np.asarray(spec.pad.color if spec.pad else (0,) * channels, np.float32)
    width, height = placement.canvas
    canvas = np.empty((height, width, channels), values.dtype)
    canvas[:] = _values(color[np.newaxis, np.newaxis], spec, tensor)
    left, top = max(0, placement.left), max(0, placement.top)
    canvas[top : top + values.shape[0], left : left + values.shape[1]] = values
    return canvas
