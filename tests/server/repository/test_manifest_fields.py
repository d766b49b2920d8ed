"""Dataclasses built from JSON: every type of field, and how a wrong one is named."""

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from cnnserve.repository.manifest.fields import InvalidField, build


@dataclass(frozen=True)
class Inner:
    number: float
    word: Literal["a", "b"] = "a"


@dataclass(frozen=True)
class Outer:
    count: int
    name: str
    flag: bool
    inner: Inner
    pair: tuple[int, int]
    rest: tuple[float, ...]
    named: dict[str, Inner]
    maybe: Inner | None
    text: str | None = None
    made: dict[str, str] = field(default_factory=dict)
    hidden: bytes = field(default=b"", metadata={"json": False})


RAW: dict[str, Any] = {
    "count": 3,
    "name": "é",
    "flag": True,
    "inner": {"number": 1, "word": "b"},
    "pair": [1, 2],
    "rest": [0.5, 2],
    "named": {"one": {"number": 0.5}},
    "maybe": None,
}


def test_every_type_of_field() -> None:
    built = build(Outer, RAW)
    assert built == Outer(3, "é", True, Inner(1.0, "b"), (1, 2), (0.5, 2.0), {"one": Inner(0.5)}, None)
    assert isinstance(built.rest[1], float)
    assert build(Outer, RAW | {"maybe": {"number": 2}, "text": "t", "made": {"k": "v"}}) == Outer(
        3, "é", True, Inner(1.0, "b"), (1, 2), (0.5, 2.0), {"one": Inner(0.5)}, Inner(2.0), "t", {"k": "v"}
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"count": 3.0}, "count is 3.0, expected int"),
        ({"count": True}, "count is True, expected int"),
        ({"count": None}, "count is None, expected int"),
        ({"flag": 1}, "flag is 1, expected bool"),
        ({"name": 3}, "name is 3, expected str"),
        ({"name": "x" * 200}, ""),
        ({"name": ["x" * 200]}, f"name is ['{'x' * 98}…, expected str"),
        ({"name": "a\udfff"}, r"name holds 'a\udfff', expected text without lone surrogates"),
        ({"name": "\ud800"}, r"name holds '\ud800', expected text without lone surrogates"),
        ({"name": "\ue000\ud7ff"}, ""),
        ({"text": 3}, "text is 3, expected str"),
        ({"inner": []}, "inner is [], expected Inner"),
        ({"inner": {"number": "1"}}, "inner.number is '1', expected a finite number"),
        ({"inner": {"number": False}}, "inner.number is False, expected a finite number"),
        ({"inner": {"number": float("inf")}}, "inner.number is inf, expected a finite number"),
        ({"inner": {"number": float("nan")}}, "inner.number is nan, expected a finite number"),
        ({"inner": {"number": 2**300}}, "inner.number is "),
        ({"inner": {"number": 10**400}}, "inner.number is a number of more than 77 digits, expected a finite number"),
        ({"inner": {"number": 1, "word": "c"}}, "inner.word is 'c', expected one of 'a', 'b'"),
        ({"inner": {"number": 1, "word": []}}, "inner.word is [], expected one of 'a', 'b'"),
        ({"inner": {"word": "a"}}, "field inner.number is missing"),
        ({"inner": {"number": 1, "more": 2, "less": 1}}, "there is no field inner.'less'; known are number, word"),
        ({"pair": [1]}, "pair is [1], expected "),
        ({"pair": [1, 2, 3]}, "pair is [1, 2, 3], expected "),
        ({"pair": [1, "2"]}, "pair[1] is '2', expected int"),
        ({"rest": [1, None]}, "rest[1] is None, expected a finite number"),
        ({"named": {"two": {}}}, "field named.two.number is missing"),
        ({"named": {"\ud800": {"number": 1}}}, r"named holds '\ud800', expected text without lone surrogates"),
        ({"named": []}, "named is [], expected "),
        ({"maybe": 1}, "maybe is 1, expected Inner"),
        ({"hidden": ""}, "there is no field 'hidden'; known are count, flag, "),
        ({"x" * 100: 1}, f"there is no field '{'x' * 80}'; known are count, flag, "),
    ],
)
def test_a_wrong_field_is_named(changes: dict[str, Any], said: str) -> None:
    if not said or said.endswith("number is "):
        build(Outer, RAW | changes)
        return
    with pytest.raises(InvalidField) as caught:
        build(Outer, RAW | changes)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize("name", ["count", "name", "flag", "inner", "pair", "rest", "named", "maybe"])
def test_a_field_without_default_is_needed(name: str) -> None:
    with pytest.raises(InvalidField, match=f"^field {name} is missing$"):
        build(Outer, {key: value for key, value in RAW.items() if key != name}, strict=False)


def test_unknown_fields_can_be_ignored_everywhere() -> None:
    inner = {"number": 1, "word": "b", "more": 1}
    assert build(Outer, RAW | {"more": 1, "hidden": 1, "inner": inner}, strict=False) == build(Outer, RAW)


def test_the_path_of_the_document_comes_first() -> None:
    with pytest.raises(InvalidField, match=r"^at\.count is 'x', expected int$"):
        build(Outer, RAW | {"count": "x"}, "at.")
