"""Images as a caller has them -> `cnnserve.v1.Image`.

Files and bytes travel as they are: the server decodes them exactly as the model's manifest says. PIL images and arrays
travel as uint8 pixels, row by row, channels last.
"""

import os
import sys
from collections.abc import AsyncIterable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeGuard, cast

from cnnserve.wire import classifier_pb2 as pb

from .arguments import wrong
from .errors import InvalidInputError

# Importing numpy costs as much as all else together. Who sends arrays has it; who sends files needs none.
if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pixels: TypeAlias = NDArray[np.uint8]
else:
    Pixels = Any


class PilImage(Protocol):
    """What is used of a `PIL.Image.Image`; the client does not import Pillow."""

    @property
    def mode(self) -> str:
        """The pixel format, "RGB" for instance."""

    def convert(self, mode: str) -> "PilImage":
        """A copy in another pixel format."""


Image: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | Pixels | PilImage
"""A path, a file's bytes, a uint8 array (HxW, HxWx1, HxWx3, HxWx4) or a PIL image.

PIL images are taken as they are in memory: EXIF orientation is not applied, and modes other than L, RGB and RGBA are
converted to RGB by Pillow, which makes 16-bit grey white. Send the file itself where the model's own rules should
decide.
"""

_PATH = (str, os.PathLike)
_BYTES = (bytes, bytearray, memoryview)
_PIECE_BYTES = 2**16
_RAW_MODES = ("L", "RGB", "RGBA")


def each(images: Image | Sequence[Image]) -> Iterator[tuple[str, Image]]:
    """One image or several, each with the name that an error calls it: `images` or `images[3]`."""
    # A path and bytes are sequences too, of characters and of numbers.
    if isinstance(images, (*_PATH, *_BYTES)) or not isinstance(images, Sequence):
        yield "images", images
        return
    for position, image in enumerate(cast("Sequence[Image]", images)):
        yield f"images[{position}]", image


def refuse_one(images: object, *, asynchronous: bool = False) -> None:
    """`InvalidInputError` where `images` is no iterable, or a single image, whose parts would be taken for many.

    Args:
        images: what `classify_many` was given.
        asynchronous: an asynchronous iterable will do, too.
    """
    one = isinstance(images, (*_PATH, *_BYTES)) or (hasattr(images, "mode") and hasattr(images, "convert"))
    if one or (_is_array(images) and images.ndim < 4):
        raise InvalidInputError(f"a {type(images).__name__} is one image: expected an iterable of images; use classify")
    # Where there are items by number, Python iterates over them: a torch Dataset.
    if isinstance(images, Iterable) or hasattr(type(images), "__getitem__"):
        return
    if not isinstance(images, AsyncIterable):
        raise wrong("images", images, "an iterable of images")
    if not asynchronous:
        raise wrong("images", images, "an iterable of images; AsyncClient takes asynchronous ones")


def take_time(images: Image | Sequence[Image]) -> bool:
    """True where an image must be read from disk or decoded by Pillow before it can be sent."""
    return any(not isinstance(image, _BYTES) and not _is_array(image) for _, image in each(images))


def load(image: Image, name: str, limit: int | None = None) -> bytes | Pixels:
    """An image as it will travel: a file's bytes, or pixels.

    Args:
        image: in any form a caller may have it.
        name: what an error calls it.
        limit: the most bytes; of a file, no more than these are read. None: as many as there are.

    Raises:
        InvalidInputError: the image is missing, unreadable, too large or of the wrong type, dtype or shape.
    """
    data: bytes | Pixels
    if isinstance(image, _PATH):
        data = _read(image, name, limit)
    elif isinstance(image, _BYTES):
        data = bytes(image)
    elif _is_array(image):
        data = _checked(image, name)
    elif hasattr(image, "mode") and hasattr(image, "convert"):
        data = _checked(_pixels(image, name), name)
    else:
        raise InvalidInputError(
            f"{name} is a {type(image).__name__}: expected a path, a file's bytes, a PIL image, a numpy uint8 array "
            "or a sequence of these"
        )
    if limit is not None and size(data) > limit:
        raise InvalidInputError(f"{name} is larger than the {limit} bytes that one request may hold")
    return data


def size(data: bytes | Pixels) -> int:
    """Bytes of a loaded image."""
    return len(data) if isinstance(data, bytes) else data.nbytes


def put(message: pb.Image, data: bytes | Pixels) -> None:
    """A loaded image into `message`, in place: protobuf copies a finished message once more when it is added."""
    if isinstance(data, bytes):
        message.encoded = data
        return
    raw = message.raw
    raw.data = data.tobytes()
    raw.height, raw.width, raw.channels = data.shape


def fill(message: pb.Image, image: Image, name: str, limit: int | None = None) -> None:
    """Put `image` into `message`. Raises as `load`."""
    put(message, load(image, name, limit))


def _read(path: str | os.PathLike[str], name: str, limit: int | None) -> bytes:
    try:
        return read_file(path, limit)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = error.strerror if isinstance(error, OSError) else error
        raise InvalidInputError(f"{name}: cannot read {os.fspath(path)!r}: {reason}") from error


def read_file(path: str | os.PathLike[str], limit: int | None = None) -> bytes:
    """A file's bytes, of one that is longer `limit` + 1: the path may be a device without an end."""
    # By descriptor: a file object costs as much again as opening and reading a small file.
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        left = sys.maxsize if limit is None else limit + 1
        piece = max(os.fstat(file).st_size + 1, _PIECE_BYTES)
        parts: list[bytes] = []
        while part := os.read(file, min(left, piece)):
            parts.append(part)
            left -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)
    finally:
        os.close(file)


def _is_array(image: object) -> "TypeGuard[Pixels]":
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(image, numpy.ndarray)


def _pixels(image: PilImage, name: str) -> Pixels:
    import numpy  # noqa: ICN001, PLC0415 - see above

    try:
        return numpy.asarray(image if image.mode in _RAW_MODES else image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:  # Pillow decodes here, and a broken PNG is a SyntaxError
        raise InvalidInputError(f"{name}: Pillow cannot decode the image: {error}") from error


def _checked(array: Pixels, name: str) -> Pixels:
    """The array as HxWxC."""
    if array.dtype != "uint8":
        raise InvalidInputError(f"{name} has dtype {array.dtype}: expected uint8, values 0 to 255")
    shape = array.shape if array.ndim == 3 else (*array.shape, 1)
    if len(shape) != 3 or shape[2] not in (1, 3, 4):
        raise InvalidInputError(
            f"{name} has shape {array.shape}: expected HxW, HxWx1, HxWx3 or HxWx4{_shape_hint(array.shape)}"
        )
    if array.size == 0:
        raise InvalidInputError(f"{name} has shape {array.shape}: it holds no pixels")
    return array.reshape(shape)


def _shape_hint(shape: tuple[int, ...]) -> str:
    if len(shape) == 3 and shape[0] in (1, 3, 4):
        return "; this looks like channels first: use array.transpose(1, 2, 0)"
    if len(shape) == 4:
        return "; send a batch as a list: list(array)"
    return ""
