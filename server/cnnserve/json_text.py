"""JSON from files that anybody may have written."""

import json
from typing import Any


def loads(text: str) -> Any:
    """The value of a JSON text. Raises `ValueError` for whatever cannot be read, lists in lists without end, too."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("its lists or objects are nested too deeply") from error
