"""What `bench/README.md` says exists."""

import re

from support import REPOSITORY

BENCH = REPOSITORY.parent / "bench"
TEXT = (BENCH / "README.md").read_text()


def test_every_script_has_a_line() -> None:
    named = set(re.findall(r"`(?:peers/)?(\w+\.py)`", TEXT))
    assert {path.name for path in BENCH.glob("*.py")} <= named


def test_every_result_that_a_finding_names_is_kept() -> None:
    named = re.findall(r"`([\w-]+-\d{8}-\d{6})`", TEXT)
    assert named
    assert [name for name in named if not (BENCH / "results" / f"{name}.json").is_file()] == []
