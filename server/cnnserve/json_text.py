"""JSON that anybody may have written."""

import json
from collections.abc import Callable
from typing import Any


def loads(text: str | bytes, parse_constant: Callable[[str], Any] | None = None) -> Any:
    """The value of a JSON text. Raises `ValueError` for whatever cannot be read, lists in lists without end, too.

    `parse_constant` is given NaN and the infinities, which are no JSON but read where it is None.
    """
    try:
        return json.loads(text, parse_constant=parse_constant)
    except RecursionError as error:
        raise ValueError("its lists or objects are nested too deeply") from error
