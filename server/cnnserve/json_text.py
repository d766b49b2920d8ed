"""Reads JSON from sources that are not trusted, such as clients and files."""

import json
from collections.abc import Callable
from typing import Any, NoReturn


def loads(text: str | bytes, parse_constant: Callable[[str], Any] | None = None, *, in_steps: bool = False) -> Any:
    """Returns the value of a JSON text. Raises `ValueError` if it is not JSON or is nested too deeply.

    `parse_constant` is called with "NaN", "Infinity" and "-Infinity", which are not JSON. If it is None, they are read
    as floats. `in_steps`: lets other threads run between two numbers, for twice the time.
    """
    numbers: dict[str, Any] = {"parse_float": _float, "parse_int": _int} if in_steps else {}
    try:
        return json.loads(text, parse_constant=parse_constant, **numbers)
    except RecursionError as error:
        raise ValueError("its arrays or objects are nested too deeply") from error


def loads_strictly(text: str | bytes) -> Any:
    """Does the same as `loads`, but refuses what readers of JSON understand differently.

    Raises `ValueError` also if an object has a key twice, or for NaN, Infinity and -Infinity.
    """
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("its arrays or objects are nested too deeply") from error


# The interpreter changes threads only between instructions of Python, which the types themselves have none of.
def _float(text: str) -> float:
    return float(text)


def _int(text: str) -> int:
    return int(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"an object has the key {twice[:80]!r} more than once")
    return values


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON, expected a finite number")
