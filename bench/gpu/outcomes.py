"""A plugin of pytest: writes the outcome of each test to a file at once, and leaves out tests that the file has passed.

The file has lines of JSON. Tests that tell most run first.
"""

import json
from pathlib import Path
from typing import Any

import pytest

# By a part of the name. The slow ones are last: the search of cuDNN, and a thousand runs of each model.
_ORDER = ("every_node", "fp32", "tf32", "graphs", "", "nhwc", "exhaustive", "first_time")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the flag for the file."""
    parser.addoption("--outcomes", type=Path, required=True, help="file for the outcomes")


def pytest_configure(config: pytest.Config) -> None:
    """Starts to write the file."""
    config.pluginmanager.register(Outcomes(config.getoption("outcomes")))


class Outcomes:
    """Reads and writes the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        before = [json.loads(line) for line in lines]
        self._done = {line["test"] for line in before if line.get("outcome") in ("passed", "skipped")}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Leaves out what has been done, and sorts the rest."""
        self._write(collected=len(items))
        items[:] = sorted((item for item in items if item.nodeid not in self._done), key=_rank)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Writes the outcome of a test: of its call, or of a set-up or an end that was no success."""
        if report.when == "call" or not report.passed:
            reason = "" if report.passed else _reason(report)
            self._write(test=report.nodeid, outcome=report.outcome, seconds=round(report.duration, 2), reason=reason)

    def _write(self, **line: Any) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def _rank(item: pytest.Item) -> int:
    fits = (place for place, part in enumerate(_ORDER) if part and part in item.name)
    return next(fits, _ORDER.index(""))


def _reason(report: pytest.TestReport) -> str:
    """Returns the last line that tells why a test failed or was skipped."""
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])
    lines = [line for line in str(report.longrepr).splitlines() if line.startswith("E ")]
    return (lines or str(report.longrepr).splitlines() or [""])[0].removeprefix("E").strip()[:300]
