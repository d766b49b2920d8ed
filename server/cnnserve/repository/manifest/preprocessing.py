"""What the server can do to an image before it becomes a row: the checks of a manifest's `preprocessing`."""

from collections.abc import Mapping

from cnnserve.repository.manifest import limits
from cnnserve.repository.manifest.fields import InvalidField
from cnnserve.repository.manifest.schema import Interpolation, Library, Pad, Preprocessing, Resize

INTERPOLATIONS: Mapping[Library, tuple[Interpolation, ...]] = {
    "pillow": ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"),
    "opencv": ("nearest", "bilinear", "bicubic", "lanczos", "area"),
}
# How many sizes each mode takes.
_SIZES = {"shorter": (1, 2), "exact": (2,), "letterbox": (2,), "fit": (1, 2)}


def check_preprocessing(spec: Preprocessing, image_shape: tuple[int, ...]) -> None:
    """Raises `InvalidField` if images so prepared do not fit `image_shape`: height, width and channels."""
    height, width, channels = image_shape
    if channels != (1 if spec.color == "L" else 3):
        raise InvalidField(
            f"preprocessing.color is {spec.color}, which does not give the {channels} channels of the input"
        )
    _check_statistics(spec, channels)
    if spec.resize is not None:
        _check_resize(spec.resize)
    if spec.pad is not None:
        _check_pad(spec.pad, channels, whole=spec.normalize != "host")
    if spec.size != (height, width):
        gives = f"gives images of size {list(spec.size)}" if spec.size else "gives images of no fixed size"
        raise InvalidField(f"preprocessing {gives}, the input needs {[height, width]}; change crop or resize")


def _check_statistics(spec: Preprocessing, channels: int) -> None:
    for name, values in (("mean", spec.mean), ("std", spec.std)):
        if len(values) != channels:
            raise InvalidField(
                f"preprocessing.{name} has {len(values)} values, expected one for each of {channels} channels"
            )
    if not all(abs(value) <= limits.LARGEST_VALUE for value in spec.mean):
        raise InvalidField(f"preprocessing.mean is {list(spec.mean)}, expected values up to {limits.LARGEST_VALUE:g}")
    for name, values in (("std", spec.std), ("scale", (spec.scale,))):
        if not all(limits.SMALLEST_FACTOR <= value <= limits.LARGEST_VALUE for value in values):
            raise InvalidField(
                f"preprocessing.{name} is {list(values)}, expected positive values from {limits.SMALLEST_FACTOR:.2g} "
                f"to {limits.LARGEST_VALUE:g}"
            )


def _check_resize(resize: Resize) -> None:
    expected = _SIZES[resize.mode]
    if len(resize.size) not in expected or not all(1 <= size <= limits.MAX_SIDE for size in resize.size):
        raise InvalidField(
            f"preprocessing.resize.size is {list(resize.size)}, mode {resize.mode} needs "
            f"{' or '.join(map(str, expected))} positive size(s) of at most {limits.MAX_SIDE}"
        )
    if resize.interpolation not in INTERPOLATIONS[resize.library]:
        raise InvalidField(
            f"preprocessing.resize.interpolation is {resize.interpolation}, but {resize.library} has "
            f"{', '.join(INTERPOLATIONS[resize.library])}"
        )
    if resize.antialias != (resize.library == "pillow"):
        raise InvalidField(
            f"preprocessing.resize.antialias is {str(resize.antialias).lower()}, expected "
            f"{str(not resize.antialias).lower()}: Pillow always resizes with antialiasing, OpenCV without"
        )


def _check_pad(pad: Pad, channels: int, *, whole: bool) -> None:
    if len(pad.color) != channels or not all(0 <= value <= 255 for value in pad.color):
        raise InvalidField(f"preprocessing.pad.color is {list(pad.color)}, expected {channels} value(s) from 0 to 255")
    if whole and not all(value.is_integer() for value in pad.color):
        raise InvalidField(
            f"preprocessing.pad.color is {list(pad.color)}, expected whole numbers: the input takes pixels"
        )
