"""Reads JSON from sources that are not trusted, such as clients and files."""

import json
from collections.abc import Callable
from typing import Any


def loads(text: str | bytes, parse_constant: Callable[[str], Any] | None = None) -> Any:
    """Returns the value of a JSON text. Raises `ValueError` if it is not JSON or is nested too deeply.

    `parse_constant` is called with "NaN", "Infinity" and "-Infinity", which are not JSON. If it is None, they are read
    as floats.
    """
    try:
        return json.loads(text, parse_constant=parse_constant)
    except RecursionError as error:
        raise ValueError("its arrays or objects are nested too deeply") from error
