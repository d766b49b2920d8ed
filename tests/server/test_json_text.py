"""JSON of others: a value, or a `ValueError`."""

import contextlib
import json
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


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1, "b": 2, "a": 1}', "an object has the key 'a' more than once"),
        ('[{"x": {"b": 2, "c": 3, "c": 4}}]', "an object has the key 'c' more than once"),
        ('{"": 1, "": 1}', "an object has the key '' more than once"),
        ('{"a": NaN}', "NaN is not JSON, expected a finite number"),
        ("[Infinity]", "Infinity is not JSON, expected a finite number"),
        ("-Infinity", "-Infinity is not JSON, expected a finite number"),
        ("[" * 200_000, "its arrays or objects are nested too deeply"),
        ("{", ".+"),
    ],
)
def test_what_readers_understand_differently_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}"):
        json_text.loads_strictly(text)


def test_a_long_key_is_cut() -> None:
    key = "a" * 81
    with pytest.raises(ValueError, match=f"the key '{key[:80]}' more"):
        json_text.loads_strictly(f'{{"{key}": 1, "{key}": 2}}')


@given(st.recursive(st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_what_is_clear_is_read_as_always(value: Any) -> None:
    assert json_text.loads_strictly(json.dumps(value)) == value


@given(st.recursive(st.integers() | st.floats(allow_nan=False), st.lists))
def test_in_steps_the_numbers_are_the_same(value: Any) -> None:
    assert json_text.loads(json.dumps(value), in_steps=True) == value
