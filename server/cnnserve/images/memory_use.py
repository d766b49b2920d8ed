"""How much memory an image takes on its way from a file to a row, as arithmetic: nothing is allocated.

The numbers are bytes a pixel, measured as peaks of the resident memory with Pillow 11 to 13, for every kind of file,
with every orientation and with grey and RGB models; tests/server/images/test_memory_use.py measures them again.
"""

from cnnserve.images import geometry
from cnnserve.images.header import ImageHeader
from cnnserve.images.resampling import Size
from cnnserve.repository.manifest import Preprocessing, TensorInfo

# While a file is decoded, turned upright and converted. Pillow stores a pixel of more than one channel in four bytes.
_JPEG, _JPEG_CMYK = 10.0, 14.0
# The coefficients of a JPEG with several scans are held at full size, whatever size is decoded: for each channel.
_COEFFICIENTS = 2.1
_PNG = {1: 7.0, 2: 13.0, 3: 10.0, 4: 16.0}
_PNG_16_BIT_GREY = 12.0
# libwebp composes frames in memory of its own, and Pillow copies them.
_WEBP_LOSSY, _WEBP_LOSSLESS, _WEBP_ALPHA = 18.0, 22.0, 27.0
_BMP, _GIF = 9.0, 8.0
# The decoded image, which stays until the row is complete. That of a WebP keeps its decoder.
_DECODED, _DECODED_WEBP = 4.0, 14.0
# Pillow's largest fraction for JPEGs, and the others.
_SCALES = (8, 4, 2)
# Tables of decoders and of resizing, which hardly depend on the size.
_FIXED = 2**20


def draft_scale(header: ImageHeader, at_least: Size | None) -> int:
    """Returns at which fraction of its size (1/1 to 1/8) a JPEG is decoded at most; `at_least` as for `decode`."""
    if header.format != "JPEG" or at_least is None:
        return 1
    # The orientation is not known yet, so the smaller fraction of both counts.
    width, height = header.width, header.height
    ratio = min(width // at_least[0], height // at_least[1], width // at_least[1], height // at_least[0])
    return next((scale for scale in _SCALES if ratio >= scale), 1)


def encoded_bytes(
    header: ImageHeader,
    spec: Preprocessing,
    tensor: TensorInfo,
    *,
    at_least: Size | None = None,
    fast: bool = False,
    may_turn: bool = True,
) -> int:
    """Returns an upper limit of the memory that a file takes until its row is complete.

    `may_turn`: the file may say that width and height have to be swapped.
    """
    scale = draft_scale(header, at_least)
    size = -(-header.width // scale), -(-header.height // scale)
    held = _DECODED_WEBP if header.format == "WEBP" else _DECODED
    sizes = (size, size[::-1]) if may_turn else (size,)
    later = max(_row_bytes(each, spec, tensor, fast=fast) for each in sizes)
    return _FIXED + int(max(_decoding_bytes(header, scale), held * size[0] * size[1] + later))


def raw_bytes(size: Size, spec: Preprocessing, tensor: TensorInfo, *, fast: bool) -> int:
    """Returns an upper limit of the memory that pixels take until their row is complete, beside the pixels as sent."""
    # Pillow's copy, and its conversion.
    return _FIXED + int(2 * _DECODED * size[0] * size[1] + _row_bytes(size, spec, tensor, fast=fast))


def _decoding_bytes(header: ImageHeader, scale: int) -> float:
    pixels = header.pixels
    if header.format == "JPEG":
        whole = (_JPEG_CMYK if header.channels > 3 else _JPEG) * pixels / scale**2
        if not header.scans_at:
            return whole
        return max(whole, (_COEFFICIENTS * header.channels + (_DECODED + 1) / scale**2) * pixels)
    if header.format == "PNG":
        return pixels * (_PNG_16_BIT_GREY if header.is_deep and header.channels == 1 else _PNG[header.channels])
    if header.format == "WEBP":
        if header.channels > 3:
            return pixels * _WEBP_ALPHA
        return pixels * (_WEBP_LOSSLESS if header.is_lossless else _WEBP_LOSSY)
    return pixels * (_BMP if header.format in ("BMP", "DIB") else _GIF)


def _row_bytes(size: Size, spec: Preprocessing, tensor: TensorInfo, *, fast: bool) -> float:
    """Returns the memory of resizing, or of making the row, whichever takes more: beside the decoded image."""
    placement = geometry.place(size, spec)
    width, height = placement.resized
    resized, source = width * height, size[0] * size[1]
    # Between its two passes; tall images are resized along the columns first.
    between = max(width * size[1], size[0] * height)
    if fast:
        # cykooz-resizer's copies, and the way back to Pillow.
        resizing = 12.0 * source + 4.0 * between + 9.0 * resized
    elif spec.resize is not None and spec.resize.library == "opencv":
        resizing = 6.0 * source + 6.0 * resized
    else:
        # Each crop on the way is a copy.
        resizing = 4.0 * source + 4.0 * between + 8.0 * resized
    return max(resizing, 4.0 * resized + _tensor_bytes(placement.canvas, spec, tensor, padded=placement.padded))


def _tensor_bytes(canvas: Size, spec: Preprocessing, tensor: TensorInfo, *, padded: bool) -> float:
    channels = 1 if spec.color == "L" else 3
    item = {"UINT8": 1, "FP16": 2}.get(tensor.datatype, 4)
    # The pixels are copied twice on their way to numpy, and up to 5 bytes a pixel of freed memory stay in the heap. The
    # values are FP32, and then of the row's type; a padded row, and one with another layout, are copies.
    values = {"UINT8": 0, "FP16": 6}.get(tensor.datatype, 4)
    copies = item * (int(padded) + int(tensor.layout == "NCHW"))
    return canvas[0] * canvas[1] * (11.0 + channels * (values + copies))
