"""Builds dataclasses from parsed JSON, field by field, and names the field that is wrong."""

import contextlib
import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

_T = TypeVar("_T")


class InvalidField(ValueError):
    """A field of a JSON document is wrong. The text names the field and its value, and says what is expected."""


def build(cls: type[_T], raw: Mapping[str, Any], where: str = "", *, strict: bool = True) -> _T:
    """Returns a dataclass whose fields have the values in `raw`.

    `where`: path of `raw` in its document, with a dot at the end. `strict`: refuse unknown fields instead of ignoring
    them. Raises `InvalidField` for a wrong type, a missing field, a number that is not finite, or an unknown field.
    """
    return _Builder(strict).build(cls, raw, where)


class _Builder:
    def __init__(self, strict: bool) -> None:
        self._strict = strict

    def build(self, cls: type[_T], raw: Mapping[str, Any], where: str) -> _T:
        hints = typing.get_type_hints(cls)
        fields = [item for item in dataclasses.fields(cls) if item.metadata.get("json", True)]  # type: ignore[arg-type]
        known = {item.name for item in fields}
        if self._strict and (unknown := sorted(raw.keys() - known)):
            raise InvalidField(f"there is no field {where}{unknown[0][:80]!r}; known are {', '.join(sorted(known))}")
        values: dict[str, Any] = {}
        for item in fields:
            if item.name in raw:
                values[item.name] = self._convert(hints[item.name], raw[item.name], f"{where}{item.name}")
            elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
                raise InvalidField(f"field {where}{item.name} is missing")
        return cls(**values)

    def _convert(self, hint: Any, value: Any, where: str) -> Any:
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if origin in (types.UnionType, typing.Union):
            if value is None and type(None) in arguments:
                return None
            return self._convert(next(a for a in arguments if a is not type(None)), value, where)
        if origin is tuple and isinstance(value, list):
            items = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
            if len(items) == len(value):
                return tuple(
                    self._convert(h, v, f"{where}[{i}]") for i, (h, v) in enumerate(zip(items, value, strict=True))
                )
        elif origin is dict and isinstance(value, dict):
            return {_text(key, where): self._convert(arguments[1], v, f"{where}.{key}") for key, v in value.items()}
        elif dataclasses.is_dataclass(hint) and isinstance(value, dict):
            return self.build(typing.cast("type[Any]", hint), value, f"{where}.")
        return _scalar(hint, value, where)


def _scalar(hint: Any, value: Any, where: str) -> Any:
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        if value in choices:
            return value
        raise InvalidField(f"{where} is {shown(value)}, expected one of {', '.join(map(repr, choices))}")
    if hint is float:
        return _float(value, where)
    if hint is str and isinstance(value, str):
        return _text(value, where)
    if isinstance(hint, type) and type(value) is hint:
        return value
    raise InvalidField(f"{where} is {shown(value)}, expected {getattr(hint, '__name__', hint)}")


def _float(value: Any, where: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            if math.isfinite(number := float(value)):
                return number
    raise InvalidField(f"{where} is {shown(value)}, expected a finite number")


def _text(value: str, where: str) -> str:
    # Half a pair of UTF-16 is no character: neither a file nor a message to a client can contain it.
    if any("\ud800" <= sign <= "\udfff" for sign in value):
        raise InvalidField(f"{where} holds {shown(value)}, expected text without lone surrogates")
    return value


def shown(value: Any) -> str:
    """Returns a value for an error: whole if it is short."""
    if isinstance(value, int) and value.bit_length() > 256:
        return "a number of more than 77 digits"
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}…"
