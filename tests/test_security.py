"""Every test that SECURITY.md names is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
_NAMED = re.compile(r"`(tests/[\w/]+\.py)?::(test_\w+)`")


def named() -> list[tuple[str, str]]:
    """The tests in the table of threats. A name without a file is in the file that was named last."""
    found: list[tuple[str, str]] = []
    for path, name in _NAMED.findall((ROOT / "SECURITY.md").read_text(encoding="utf-8")):
        found.append((path or found[-1][0], name))
    return found


def test_the_table_of_threats_is_read() -> None:
    assert len(named()) > 25


@pytest.mark.parametrize(("path", "name"), named())
def test_a_test_of_the_table_is_there(path: str, name: str) -> None:
    assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)


def test_every_row_of_the_table_names_a_test() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    rows = [line for line in text.partition("## Threats")[2].splitlines() if line.startswith("| ")][1:]
    assert rows
    assert all("::test_" in row for row in rows)
