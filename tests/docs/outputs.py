"""Whether a command printed what the page shows."""

import difflib
import re
from collections.abc import Sequence

_ANY = "..."
_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*(?:e-?\d+)?")
_SPACES = re.compile(r"\s+")


def difference(shown: Sequence[str], printed: str, *, varies: bool = False) -> str:
    """Why the two differ, line by line; empty where they do not.

    A shown line `...` stands for any number of lines, and `...` within a line for any text. `varies`: numbers are
    compared as numbers only, and spaces, which are as many as numbers need, as one.
    """
    expected = _plain("\n".join(shown), varies)
    actual = _plain(printed, varies)
    if re.fullmatch(_pattern(expected), "".join(f"{line}\n" for line in actual)):
        return ""
    return "\n".join(difflib.unified_diff(expected, actual, "shown", "printed", lineterm=""))


def _plain(text: str, varies: bool) -> list[str]:
    lines = [line.rstrip() for line in text.strip("\n").splitlines()]
    return [_SPACES.sub(" ", _NUMBER.sub("N", line)) for line in lines] if varies else lines


def _pattern(lines: list[str]) -> str:
    return "".join(
        "(?:.*\n)*" if line == _ANY else re.escape(line).replace(re.escape(_ANY), ".*") + "\n" for line in lines
    )
