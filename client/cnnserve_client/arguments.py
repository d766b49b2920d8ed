"""Arguments of the wrong type, told by name and value before they fail somewhere deep inside."""

import numbers
import operator
from typing import SupportsIndex, cast

from .errors import InvalidInputError


def text(name: str, value: object, what: str) -> str:
    """`value` if it can travel as text, else `InvalidInputError`."""
    if not isinstance(value, str):
        raise wrong(name, value, f"text, {what}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(f"{name} is {value!r}: not valid Unicode text") from error
    return value


def positive(name: str, value: object, most: float, expected: str) -> float:
    """`value` as a float if it is a number, one of numpy's perhaps, above 0 to `most`, else `InvalidInputError`."""
    # True is a number to Python, and a slip to everybody else.
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise wrong(name, value, expected)
    real = cast("float", value)
    if not 0 < real <= most:  # False for NaN
        raise wrong(name, value, expected)
    return float(real)


def whole(name: str, value: object, least: int, most: int, expected: str) -> int:
    """`value` as an int from `least` to `most`, else `InvalidInputError`."""
    if isinstance(value, bool) or not isinstance(value, SupportsIndex) or not least <= operator.index(value) <= most:
        raise wrong(name, value, expected)
    return operator.index(value)


def wrong(name: str, value: object, expected: str) -> InvalidInputError:
    """The error for a value that is not what was expected; of a long one its beginning is shown."""
    shown = repr(value)
    if len(shown) > 100:
        shown = f"{shown[:100]}..."
    return InvalidInputError(f"{name} is {shown}: expected {expected}")
