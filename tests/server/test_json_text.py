"""JSON of others: a value, or a `ValueError`."""

import contextlib
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnserve import json_text


@pytest.mark.parametrize(
    ("text", "value"), [("1", 1), (b'{"a": [null, true]}', {"a": [None, True]}), ('"\\u00e4"', "ä")]
)
def test_a_value(text: str | bytes, value: Any) -> None:
    assert json_text.loads(text) == value


@pytest.mark.parametrize("text", ["", "{", b"\xff", "1 2", "[" * 200_000, '{"a":' * 200_000, "'a'"])
def test_what_is_no_json_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        json_text.loads(text)


def test_nesting_too_deep_is_told_as_such() -> None:
    with pytest.raises(ValueError, match="nested"):
        json_text.loads("[" * 200_000)


def test_what_is_no_json_but_is_read_is_the_callers_to_choose() -> None:
    assert math.isnan(json_text.loads("NaN"))
    assert json_text.loads("[NaN, Infinity, -Infinity]", str) == ["NaN", "Infinity", "-Infinity"]


@given(st.binary(max_size=40))
def test_any_bytes_are_a_value_or_a_value_error(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        json_text.loads(data)
