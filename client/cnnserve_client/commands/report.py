"""Formats models and labels as tables for people and as JSON for programs. Prints nothing."""

import json
import textwrap
from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import Any, Final

from cnnserve_client.results import ModelInfo, VersionInfo

from . import terminal

_WIDTH: Final = 80
_INDENT: Final = "    "


def printable(text: str) -> str:
    """Returns `text` with control characters, line breaks and text-direction marks escaped, safe for a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """Returns a table whose columns are two spaces apart. The columns in `right` are aligned right, the others left."""
    lines = [[printable(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(terminal.width, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(_pad, line, widths, _aligned(line, right))).rstrip() for line in lines)


def models_table(models: Sequence[ModelInfo]) -> str:
    """Returns a table with one line for each version. A model without versions also has one line.

    If the table would be wider than 80 columns, the reasons stand below the lines of their versions.
    """
    header = ("NAME", "VERSION", "STATE", "INPUT", "CLASSES", "MAX BATCH", "VERIFIED", "REASON")
    rows = [_version_row(model, version) for model in models for version in model.versions or (None,)]
    whole = table(header, rows, right=(4, 5))
    if max(map(terminal.width, whole.splitlines())) <= _WIDTH:
        return whole
    first, *lines = table(header[:-1], [row[:-1] for row in rows], right=(4, 5)).splitlines()
    reasons = (textwrap.wrap(printable(row[-1]), _WIDTH - len(_INDENT)) for row in rows)
    below = (part for line, parts in zip(lines, reasons, strict=True) for part in (line, *map(_INDENT.__add__, parts)))
    return "\n".join((first, *below))


def models_json(models: Sequence[ModelInfo]) -> str:
    """Returns a JSON list of the models with their versions."""
    return _json(
        [
            {"name": model.name, "reason": model.reason, "versions": [asdict(v) for v in model.versions]}
            for model in models
        ]
    )


def labels_table(labels: Sequence[str]) -> str:
    """Returns a table with the index and the label of each class."""
    return table(("INDEX", "LABEL"), [(str(index), label) for index, label in enumerate(labels)], right=(0,))


def labels_json(labels: Sequence[str]) -> str:
    """Returns a JSON list with the index and the label of each class."""
    return _json([{"index": index, "label": label} for index, label in enumerate(labels)])


def _json(document: Any) -> str:
    # ASCII, because names and reasons may contain control characters.
    return json.dumps(document, indent=2)


def _version_row(model: ModelInfo, version: VersionInfo | None) -> tuple[str, ...]:
    name = model.name
    if version is None:
        return (name, *["-"] * 6, model.reason)
    if not version.ready:
        return (name, _version_cell(version), version.state, *["-"] * 4, version.reason)
    spec = version.input
    shape = f"{spec.datatype} [{','.join(map(str, spec.shape))}]" if spec else "-"
    verified = "yes" if version.verified else "no"
    return (
        name,
        _version_cell(version),
        version.state,
        shape,
        str(version.class_count),
        str(version.max_batch_size),
        verified,
        version.reason,
    )


def _version_cell(version: VersionInfo) -> str:
    return f"{version.version} ({', '.join(version.version_labels)})" if version.version_labels else version.version


def _pad(text: str, width: int, right: bool) -> str:
    space = " " * (width - terminal.width(text))
    return space + text if right else text + space


def _aligned(line: Sequence[str], right: Collection[int]) -> list[bool]:
    return [column in right for column in range(len(line))]
