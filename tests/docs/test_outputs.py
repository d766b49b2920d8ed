"""Shown and printed output."""

import pytest

from outputs import difference


@pytest.mark.parametrize(
    ("shown", "printed", "varies", "same"),
    [
        (["a 1", "b"], "a 1\nb\n", False, True),
        (["a 1"], "a 2\n", False, False),
        (["a 1"], "a 1\nb\n", False, False),
        (["a", "...", "d"], "a\nb\nc\nd\n", False, True),
        (["a", "...", "d"], "a\nd\n", False, True),
        (["a", "..."], "b\n", False, False),
        (["in ... s"], "in 1.5 s\n", False, True),
        (["1.5 s   x"], "12.25 s  x\n", True, True),
        (["1.5 s"], "none s\n", True, False),
        (["2026-11-28 21:46:48,516 INFO"], "2027-01-01 00:00:00,001 INFO\n", True, True),
        (["7.2e-07"], "1e-04\n", True, True),
        (["a.c"], "abc\n", False, False),
    ],
)
def test_difference(shown: list[str], printed: str, varies: bool, same: bool) -> None:
    assert (difference(shown, printed, varies=varies) == "") is same
