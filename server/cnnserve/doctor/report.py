"""Turns findings into text of at most 80 columns, or into JSON. Prints nothing."""

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence

import cnnserve
from cnnserve.doctor.findings import Finding, Status, many
from cnnserve.repository.show_text import printable

WIDTH = 80
_STATUS_WIDTH = max(len(status.value) for status in Status) + 2

Sections = Mapping[str, Sequence[Finding]]


def count(sections: Sections, status: Status) -> int:
    """Returns the number of findings with this status."""
    return sum(finding.status is status for findings in sections.values() for finding in findings)


def as_json(sections: Sections) -> str:
    """Returns all findings as a JSON document."""
    document = {
        "cnnserve": cnnserve.__version__,
        "problems": count(sections, Status.PROBLEM),
        "warnings": count(sections, Status.WARNING),
        "sections": {name: [finding.document() for finding in findings] for name, findings in sections.items()},
    }
    return json.dumps(document, indent=2)


def as_text(sections: Sections) -> str:
    """Returns all findings as lines, each section under its name, and their number at the end."""
    return "\n".join(_lines(sections))


def _lines(sections: Sections) -> Iterator[str]:
    for name, findings in sections.items():
        yield name
        for finding in findings:
            yield from _finding(finding)
        yield ""
    yield f"{many(count(sections, Status.PROBLEM), 'problem')}, {many(count(sections, Status.WARNING), 'warning')}"


def _finding(finding: Finding) -> Iterator[str]:
    yield from _wrapped(f"  {finding.status.value:<{_STATUS_WIDTH}}", f"{finding.name}: {finding.text}")
    if finding.fix:
        yield from _wrapped(" " * (_STATUS_WIDTH + 2), f"fix: {finding.fix}")


def _wrapped(start: str, text: str) -> list[str]:
    indent = " " * len(start)
    # A command must not be broken at its hyphens.
    return textwrap.wrap(printable(text), WIDTH, initial_indent=start, subsequent_indent=indent, break_on_hyphens=False)
