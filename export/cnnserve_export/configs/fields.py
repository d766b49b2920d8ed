"""The fields of a JSON object, each taken once: what is left at the end and has an effect is refused by name."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from cnnserve_export.errors import ExportError

_T = TypeVar("_T")

_LARGEST_SIDE = 1 << 16


class Fields:
    """Takes the fields of `raw` one by one. Errors name `source`, the field and its value."""

    def __init__(self, raw: Mapping[str, Any], source: str) -> None:
        self._left = dict(raw)
        self._source = source

    def value(self, name: str, default: Any = None) -> Any:
        """Returns the value of a field; `default` if it is missing or null."""
        value = self._left.pop(name, None)
        return default if value is None else value

    def needed(self, name: str) -> Any:
        """Returns the value of a field. Raises `ExportError` if it is missing or null."""
        if (value := self.value(name)) is None:
            raise ExportError(f"{self._source} has no {name}; add it, or give the preprocessing with flags")
        return value

    def flag(self, name: str, *, default: bool) -> bool:
        """Returns whether a field is true."""
        if not isinstance(value := self.value(name, default), bool):
            raise self.wrong(name, value, "true or false")
        return value

    def number(self, name: str, default: float) -> float:
        """Returns a finite number above 0."""
        value = self.value(name, default)
        if not _is_number(value) or value <= 0:
            raise self.wrong(name, value, "a number above 0")
        return float(value)

    def numbers(self, name: str, default: Iterable[float] | None = None) -> tuple[float, ...]:
        """Returns a list of finite numbers; a single number is a list of one. Without `default` it is needed."""
        value = self.needed(name) if default is None else self.value(name, tuple(default))
        values = [value] if _is_number(value) else value
        if not isinstance(values, list | tuple) or not values or not all(map(_is_number, values)):
            raise self.wrong(name, value, "a list of numbers")
        return tuple(map(float, values))

    def sizes(self, name: str, value: Any, counts: tuple[int, ...]) -> tuple[int, ...]:
        """Returns `value`, a size or a list of sizes in pixels, as sizes; `name` is for the error."""
        values = value if isinstance(value, list | tuple) else [value]
        if len(values) not in counts or not all(type(v) is int and 1 <= v <= _LARGEST_SIDE for v in values):
            raise self.wrong(name, value, f"{' or '.join(map(str, counts))} size(s) in pixels")
        return tuple(values)

    def choice(self, name: str, value: Any, choices: Mapping[Any, _T]) -> _T:
        """Returns what `choices` has for `value`; `name` is for the error."""
        if not isinstance(value, str | int) or isinstance(value, bool) or value not in choices:
            raise self.wrong(name, value, f"one of {', '.join(map(str, choices))}")
        return choices[value]

    def inner(self, name: str) -> "Fields | None":
        """Returns the fields of an object within this one, or None if there is none."""
        value = self.value(name)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(name, value, "an object")
        return None if value is None else Fields(value, f"{self._source}: {name}")

    def finish(self, harmless: Iterable[str]) -> None:
        """Raises `ExportError` if a field is left that may have an effect: not `harmless`, null or false."""
        known = set(harmless)
        for name, value in self._left.items():
            if name not in known and value is not None and value is not False:
                raise self.unsupported(name, value)

    def wrong(self, name: str, value: Any, expected: str) -> ExportError:
        """Returns the error for a value that is not what is expected."""
        return ExportError(f"{self._source}: {name} is {str(value)[:80]!r}, expected {expected}")

    def unsupported(self, name: str, value: Any) -> ExportError:
        """Returns the error for a field whose effect cnnserve does not have."""
        return ExportError(
            f"{self._source}: {name} is {str(value)[:80]!r}, an effect that cnnserve does not know; if images are "
            "the same without it, remove it, else give the preprocessing with flags"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
