"""Converts the images that callers pass to the protobuf message `cnnserve.v1.Image`.

The client sends files and bytes unchanged, so the server decodes them as the model's manifest says. It sends PIL images
and arrays as uint8 pixels, row by row, channels last.
"""

import os
import sys
from collections.abc import AsyncIterable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeGuard, cast

from cnnserve.wire import classifier_pb2 as pb

from .arguments import wrong
from .errors import InvalidInputError

# Importing numpy takes as long as all other imports together. A caller who sends arrays has imported numpy already; a
# caller who sends files does not need it.
if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pixels: TypeAlias = NDArray[np.uint8]
else:
    Pixels = Any


class PilImage(Protocol):
    """The part of `PIL.Image.Image` that the client uses, so that it need not import Pillow."""

    @property
    def mode(self) -> str:
        """The pixel format, for example "RGB"."""

    def convert(self, mode: str) -> "PilImage":
        """Returns a copy in another pixel format."""


Image: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | Pixels | PilImage
"""A path, the bytes of a file, a uint8 array (HxW, HxWx1, HxWx3 or HxWx4) or a PIL image.

The client sends the pixels of a PIL image as they are in memory. It does not apply the EXIF orientation, and Pillow
converts modes other than L, RGB and RGBA to RGB, which turns nearly all 16-bit grey pixels white. To apply the
preprocessing of the model's manifest from the start, pass the file itself.
"""

_PATH = (str, os.PathLike)
_BYTES = (bytes, bytearray, memoryview)
_PIECE_BYTES = 2**16
# On Windows, a file that is opened as text ends at its first Ctrl-Z.
_BINARY: int = getattr(os, "O_BINARY", 0)
_RAW_MODES = ("L", "RGB", "RGBA")


def each(images: Image | Sequence[Image]) -> Iterator[tuple[str, Image]]:
    """Yields each image with its name for errors: `images` for a single image, else for example `images[3]`."""
    # A path and bytes are sequences too: of characters and of numbers.
    if isinstance(images, (*_PATH, *_BYTES)) or not isinstance(images, Sequence):
        yield "images", images
        return
    for position, image in enumerate(cast("Sequence[Image]", images)):
        yield f"images[{position}]", image


def refuse_one(images: object, *, asynchronous: bool = False) -> None:
    """Raises `InvalidInputError` if `images` is not iterable, or is a single image.

    Without this check, the rows of a single array or the bytes of a file would count as images.

    Args:
        images: the argument of `classify_many`.
        asynchronous: if True, an asynchronous iterable is accepted, too.
    """
    one = isinstance(images, (*_PATH, *_BYTES)) or (hasattr(images, "mode") and hasattr(images, "convert"))
    if one or (_is_array(images) and images.ndim < 4):
        raise InvalidInputError(
            f"images is a single image of type {type(images).__name__}: expected an iterable of images; use classify "
            "for one image"
        )
    # Python also iterates over objects that have only __getitem__, such as a torch Dataset.
    if isinstance(images, Iterable) or hasattr(type(images), "__getitem__"):
        return
    if not isinstance(images, AsyncIterable):
        raise wrong("images", images, "an iterable of images")
    if not asynchronous:
        raise wrong("images", images, "an iterable of images; only AsyncClient accepts asynchronous iterables")


def take_time(images: Image | Sequence[Image]) -> bool:
    """Returns whether one of the images must be read from disk or decoded by Pillow before it can be sent."""
    return any(not isinstance(image, _BYTES) and not _is_array(image) for _, image in each(images))


def load(image: Image, name: str, limit: int | None = None) -> bytes | Pixels:
    """Returns the data of an image to send: the bytes of a file, or pixels with shape HxWxC.

    Args:
        image: the image in any of the forms of `Image`.
        name: the name of the image in error messages.
        limit: maximum size in bytes, or None for no limit. Of a larger file, only `limit` + 1 bytes are read.

    Raises:
        InvalidInputError: the image is missing, unreadable, too large or has the wrong type, dtype or shape.
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
            f"{name} has type {type(image).__name__}: expected a path, the bytes of a file, a PIL image, a numpy uint8 "
            "array or a sequence of these"
        )
    if limit is not None and size(data) > limit:
        raise InvalidInputError(
            f"{name} is larger than the {limit} bytes that one request may hold: send a smaller image, or raise "
            "max_message_mib of the client and of the server"
        )
    return data


def size(data: bytes | Pixels) -> int:
    """Returns the number of bytes of a loaded image."""
    return len(data) if isinstance(data, bytes) else data.nbytes


def put(message: pb.Image, data: bytes | Pixels) -> None:
    """Puts a loaded image into `message`.

    `message` should be part of its request already, because protobuf copies a finished message when it is added.
    """
    if isinstance(data, bytes):
        message.encoded = data
        return
    raw = message.raw
    raw.data = data.tobytes()
    raw.height, raw.width, raw.channels = data.shape


def fill(message: pb.Image, image: Image, name: str, limit: int | None = None) -> None:
    """Loads `image` and puts it into `message`. Raises the same errors as `load`."""
    put(message, load(image, name, limit))


def _read(path: str | os.PathLike[str], name: str, limit: int | None) -> bytes:
    try:
        return read_file(path, limit)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = error.strerror if isinstance(error, OSError) else error
        raise InvalidInputError(f"{name}: cannot read {os.fspath(path)!r}: {reason}") from error


def read_file(path: str | os.PathLike[str], limit: int | None = None) -> bytes:
    """Returns the bytes of a file, at most the first `limit` + 1, because `path` may be a device without an end."""
    # A file descriptor, because creating a file object takes as long as opening and reading a small file.
    file = os.open(path, os.O_RDONLY | _BINARY)
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
    import numpy  # noqa: ICN001, PLC0415 - only callers who pass PIL images should wait for this import

    try:
        return numpy.asarray(image if image.mode in _RAW_MODES else image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:  # Pillow decodes here; a broken PNG is a SyntaxError
        raise InvalidInputError(f"{name}: Pillow cannot decode the image: {error}") from error


def _checked(array: Pixels, name: str) -> Pixels:
    """Returns the array with shape HxWxC."""
    if array.dtype != "uint8":
        raise InvalidInputError(f"{name} has dtype {array.dtype}: expected uint8 with values from 0 to 255")
    shape = array.shape if array.ndim == 3 else (*array.shape, 1)
    if len(shape) != 3 or shape[2] not in (1, 3, 4):
        raise InvalidInputError(
            f"{name} has shape {array.shape}: expected HxW, HxWx1, HxWx3 or HxWx4{_shape_hint(array.shape)}"
        )
    if array.size == 0:
        raise InvalidInputError(f"{name} has shape {array.shape} and so no pixels: expected at least one pixel")
    return array.reshape(shape)


def _shape_hint(shape: tuple[int, ...]) -> str:
    if len(shape) == 3 and shape[0] in (1, 3, 4):
        return "; if the channels come first, send array.transpose(1, 2, 0)"
    if len(shape) == 4:
        return "; to send a batch, use list(array)"
    return ""
