"""From an encoded or raw image to one row of a model's input, exactly as the manifest says.

The geometry follows torchvision's PIL pipeline: `Resize` (shorter side, the longer one truncated to whole pixels, or an
exact size), `CenterCrop`, `ToTensor`, `Normalize`. The exporter uses this same module, so what parity was proved on is
what the server runs.
"""

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from cnnserve.errors import InvalidInput
from cnnserve.manifest import Preprocessing, Resize, TensorInfo

# A format's decoder is attack surface: only what people really send.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
DEFAULT_PIXEL_LIMIT = 50_000_000

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_RAW_MODES = {1: "L", 3: "RGB", 4: "RGBA"}

# Our own limit is tighter and answers the caller; Pillow's would only warn.
Image.MAX_IMAGE_PIXELS = None


@dataclass(frozen=True)
class RawImage:
    """Pixels as uint8, row by row, channels last: 1 grey, 3 RGB, 4 RGBA."""

    data: bytes
    height: int
    width: int
    channels: int


# A file's bytes, or pixels.
ImageSource = bytes | RawImage


class Preprocessor:
    """Turns images into rows for one model. Thread-safe: it holds no state but its specification."""

    def __init__(self, spec: Preprocessing, tensor: TensorInfo, pixel_limit: int = DEFAULT_PIXEL_LIMIT) -> None:
        self._spec = spec
        self._tensor = tensor
        self._pixel_limit = pixel_limit

    def row(self, image: ImageSource) -> NDArray[np.generic]:
        """One row of the model's input (the tensor's shape and type). Raises `InvalidInput`."""
        return self.encoded(image) if isinstance(image, bytes) else self.raw(image)

    def encoded(self, data: bytes) -> NDArray[np.generic]:
        """One row from a file's bytes. Raises `InvalidInput`."""
        if not data:
            raise InvalidInput("the image is empty (0 bytes)")
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                self._check_size(*image.size)
                image.load()
                upright = ImageOps.exif_transpose(image) if self._spec.exif_orientation else image
                return self._row(_to_mode(upright, self._spec.color))
        except UnidentifiedImageError as error:
            raise InvalidInput(
                f"the {len(data)} bytes beginning {data[:8]!r} are no image this server reads; "
                f"expected one of {', '.join(FORMATS)}"
            ) from error
        except InvalidInput:
            raise
        except MemoryError as error:
            raise InvalidInput("the image needs more memory than there is") from error
        except Exception as error:
            # Pillow's plugins raise OSError, ValueError, SyntaxError, struct.error, ... on damaged files.
            raise InvalidInput(f"the image is damaged: {error}") from error

    def raw(self, image: RawImage) -> NDArray[np.generic]:
        """One row from pixels. Raises `InvalidInput`."""
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
        self._check_size(width, height)
        mode = _RAW_MODES[channels]
        return self._row(
            _to_mode(Image.frombuffer(mode, (width, height), image.data, "raw", mode, 0, 1), self._spec.color)
        )

    def _row(self, image: Image.Image) -> NDArray[np.generic]:
        spec = self._spec
        if spec.resize is not None:
            size = resized_size(image.size, spec.resize)
            self._check_size(*size)
            if size != image.size:
                # reducing_gap is left off: it changes pixels.
                image = image.resize(size, _FILTERS[spec.resize.interpolation])
        if spec.crop is not None:
            image = _center_crop(image, *spec.crop)
        return to_tensor(np.asarray(image), spec, self._tensor)

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self._pixel_limit:
            raise InvalidInput(
                f"an image of {width}x{height} pixels is over this model's limit of {self._pixel_limit:,} pixels"
            )


def to_tensor(pixels: NDArray[np.uint8], spec: Preprocessing, tensor: TensorInfo) -> NDArray[np.generic]:
    """Channel order, scale, normalisation and layout of a finished uint8 image (H x W or H x W x C)."""
    image = pixels[:, :, np.newaxis] if pixels.ndim == 2 else pixels
    if spec.color == "BGR":
        image = image[:, :, ::-1]
    if tensor.datatype == "UINT8":
        values: NDArray[np.generic] = image
    else:
        scaled: NDArray[np.float32] = image.astype(np.float32) / np.float32(255)
        if spec.normalize == "host":
            scaled -= np.asarray(spec.mean, np.float32)
            scaled /= np.asarray(spec.std, np.float32)
        values = scaled.astype(np.float16) if tensor.datatype == "FP16" else scaled
    if tensor.layout == "NCHW":
        values = values.transpose(2, 0, 1)
    return np.ascontiguousarray(values)


def resized_size(size: tuple[int, int], resize: Resize) -> tuple[int, int]:
    """(width, height) after `resize`; the longer side is truncated, as torchvision does."""
    if resize.mode == "exact":
        return resize.size[1], resize.size[0]
    width, height = size
    target = resize.size[0]
    if width <= height:
        return target, int(target * height / width)
    return int(target * width / height), target


def _center_crop(image: Image.Image, height: int, width: int) -> Image.Image:
    # torchvision rounds half to even here, and pads with black what is too small.
    left = round((image.width - width) / 2)
    top = round((image.height - height) / 2)
    if (left, top, width, height) == (0, 0, image.width, image.height):
        return image
    if image.width < width or image.height < height:
        pad_left, pad_top = max((width - image.width) // 2, 0), max((height - image.height) // 2, 0)
        padded = Image.new(image.mode, (max(width, image.width), max(height, image.height)))
        padded.paste(image, (pad_left, pad_top))
        return _center_crop(padded, height, width)
    return image.crop((left, top, left + width, top + height))


def _to_mode(image: Image.Image, color: str) -> Image.Image:
    mode = "L" if color == "L" else "RGB"
    if image.mode == mode:
        return image
    if image.mode.startswith("I;16"):
        # convert() would clip 16-bit grey at 255 instead of scaling it.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        # The same colours as the direct way, without Pillow's warning about the lost transparency.
        image = image.convert("RGBA")
    return image.convert(mode)
