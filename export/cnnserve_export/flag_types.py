"""Converts the text of a flag to its value. Each function raises `ArgumentTypeError` with what is expected."""

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from cnnserve.repository.manifest import Pad
from cnnserve_export import labels
from cnnserve_export.contract import LARGEST_BATCH_SIZE

_T = TypeVar("_T")

# The word for the built-in label file.
IMAGENET = "imagenet"
_LARGEST_SCALE = 1000
_LARGEST_SHARE = 4


def path(text: str) -> Path:
    """Returns the path that `text` names."""
    return Path(utf8_text(text))


def label_file(text: str) -> Path:
    """Returns the path of a label file, or of the built-in one."""
    if text != IMAGENET:
        return path(text)
    if Path(text).is_file():
        raise argparse.ArgumentTypeError(
            f"{text!r} names the built-in list of ImageNet labels, but the current folder holds a file {text!r}, too; "
            f"write ./{text} for the file, or rename it"
        )
    return labels.IMAGENET_FILE


def utf8_text(text: str) -> str:
    """Returns `text` if it is UTF-8."""
    # ONNX Runtime cannot open other paths, and the manifest could not name them.
    try:
        text.encode()
    except UnicodeEncodeError as error:
        shown = os.fsencode(text).decode(errors="backslashreplace")
        raise argparse.ArgumentTypeError(f"the path {shown} is not UTF-8; rename it") from error
    return text


def share(text: str) -> float:
    """Returns a number from 0 to 1."""
    value = _converted(text, float, "a number from 0 to 1")
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not within 0 and 1")
    return value


def positive(text: str) -> int:
    """Returns a whole number of at least 1."""
    return _converted(text, _size, "a whole number of at least 1")


def batch_size(text: str) -> int:
    """Returns the number of images in a batch."""
    value = positive(text)
    if value > LARGEST_BATCH_SIZE:
        raise argparse.ArgumentTypeError(f"{value} is too large; the largest batch is {LARGEST_BATCH_SIZE}")
    return value


def scale(text: str) -> float:
    """Returns a positive number, which may be written as a fraction."""
    numerator, _, denominator = text.partition("/")
    expected = "a number such as 1 or 1/127.5"
    divisor = _converted(denominator or "1", float, expected)
    value = _converted(numerator, float, expected) / divisor if divisor else 0
    if not 0 < value <= _LARGEST_SCALE:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most {_LARGEST_SCALE}")
    return value


def crop_share(text: str) -> float:
    """Returns the share of a resized image that a crop keeps; more than 1 pads the image."""
    value = _converted(text, float, "a number such as 0.875")
    if not 0 < value <= _LARGEST_SHARE:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most {_LARGEST_SHARE}")
    return value


def padding(text: str) -> Pad:
    """Returns colour and alignment of a border."""
    color, _, align = text.rpartition(",") if text.endswith((",center", ",start")) else (text, "", "center")
    values = tuple(_each(color, float, "a colour such as 114 or 124,116,104", counts=(1, 3)))
    if not all(0 <= value <= 255 for value in values):
        raise argparse.ArgumentTypeError(f"{text} has a value that is not within 0 and 255")
    return Pad(values, "start" if align == "start" else "center")


def numbers(text: str) -> tuple[float, ...]:
    """Returns numbers separated by commas."""
    return tuple(_each(text, float, "numbers such as 0.485,0.456,0.406"))


def sizes(text: str) -> tuple[int, ...]:
    """Returns one size or two, in pixels."""
    return tuple(_each(text, _size, "N or H,W", counts=(1, 2)))


def shape(text: str) -> tuple[int, ...]:
    """Returns channels, height and width."""
    return tuple(_each(text, _size, "C,H,W, without the batch", counts=(3,)))


def _size(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is too small; give at least 1")
    return value


def _converted(text: str, convert: Callable[[str], _T], expected: str) -> _T:
    try:
        return convert(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not {expected}") from error


def _each(text: str, convert: Callable[[str], _T], expected: str, counts: Sequence[int] = ()) -> list[_T]:
    values = _converted(text, lambda whole: [convert(part) for part in whole.split(",")], expected)
    if counts and len(values) not in counts:
        raise argparse.ArgumentTypeError(f"{text} has {len(values)} values, expected {expected}")
    return values
