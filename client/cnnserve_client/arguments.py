"""Checks arguments early, so that an error names the argument and its value and not a line deep inside gRPC."""

import numbers
import operator
from typing import SupportsIndex, cast

from .errors import InvalidInputError


def text(name: str, value: object, expected: str) -> str:
    """Returns `value`. Raises `InvalidInputError` if it is no `str`, or if UTF-8 cannot encode it."""
    if not isinstance(value, str):
        raise wrong(name, value, f"{expected}, as text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise wrong(name, value, f"{expected}, as valid Unicode text") from error
    return value


def positive(name: str, value: object, most: float, expected: str) -> float:
    """Returns `value`, a real number of Python or NumPy, as a float.

    Raises `InvalidInputError` unless `value` is a number above 0 and at most `most`.
    """
    # Python counts True as 1, but a caller who passes it here has made a mistake.
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise wrong(name, value, expected)
    real = cast("float", value)
    if not 0 < real <= most:  # False for NaN
        raise wrong(name, value, expected)
    return float(real)


def whole(name: str, value: object, least: int, most: int, expected: str) -> int:
    """Returns `value` as an int. Raises `InvalidInputError` unless it is a whole number from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, SupportsIndex) or not least <= operator.index(value) <= most:
        raise wrong(name, value, expected)
    return operator.index(value)


def wrong(name: str, value: object, expected: str) -> InvalidInputError:
    """Returns the error for a wrong argument. It shows at most the first 100 characters of `repr(value)`."""
    shown = repr(value)
    if len(shown) > 100:
        shown = f"{shown[:100]}..."
    return InvalidInputError(f"{name} is {shown}: expected {expected}")
