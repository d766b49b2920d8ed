"""Results as a person or a program reads them: aligned tables and JSON. Returns text, prints nothing."""

import json
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from .results import Class, ImageResult, ModelInfo, VersionInfo

if TYPE_CHECKING:
    from .files import FilesReport


def printable(text: str) -> str:
    """`text` with control characters, line breaks and text-direction marks escaped: it cannot drive a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """Aligned columns, two spaces apart; those in `right` flush right, the last one never padded on its right."""
    lines = [[printable(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(_width, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(_pad, line, widths, _aligned(line, right))).rstrip() for line in lines)


def classification_table(report: "FilesReport") -> str:
    """One line per class, the file named on its first; a failed image has its error instead."""
    rows = [row for path, result in report.results for row in _image_rows(path, result)]
    return table(("FILE", "RANK", "PROBABILITY", "LABEL"), rows, right=(1, 2))


def classification_json(report: "FilesReport") -> str:
    """One document; timings are sums over the requests, in microseconds."""
    return _json(
        {
            "model": report.model,
            "version": report.version,
            "timings": asdict(report.timings),
            "images": [{"file": path, **_image_document(result)} for path, result in report.results],
        }
    )


def models_table(models: Sequence[ModelInfo]) -> str:
    """One line per version; a model without versions has one too."""
    header = ("NAME", "VERSION", "STATE", "INPUT", "CLASSES", "MAX BATCH", "VERIFIED", "REASON")
    rows = [_version_row(model.name, version) for model in models for version in model.versions or (None,)]
    return table(header, rows, right=(4, 5))


def models_json(models: Sequence[ModelInfo]) -> str:
    """A list of models, each with its versions."""
    return _json([{"name": model.name, "versions": [asdict(v) for v in model.versions]} for model in models])


def _json(document: Any) -> str:
    # ASCII: file names may hold bytes that are no text, and terminals codes that are no letters.
    return json.dumps(document, indent=2)


def _image_rows(path: str, result: ImageResult) -> list[tuple[str, str, str, str]]:
    if result.error is not None:
        return [(path, "-", "-", f"error: {result.error}")]
    return [
        (path if rank == 1 else "", str(rank), f"{top.probability:.2%}", _label(top))
        for rank, top in enumerate(result.classes, start=1)
    ]


def _label(top: Class) -> str:
    return top.label or f"class {top.index}"


def _image_document(result: ImageResult) -> dict[str, Any]:
    if result.error is not None:
        return {"error": {"code": result.error.code, "message": str(result.error)}}
    return {"classes": [asdict(top) for top in result.classes]}


def _version_row(name: str, version: VersionInfo | None) -> tuple[str, ...]:
    if version is None:
        return (name, *["-"] * 6, "")
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


def _width(text: str) -> int:
    """Terminal columns: East Asian wide characters take two, combining marks none."""
    return sum((unicodedata.east_asian_width(c) in "WF") + (not unicodedata.combining(c)) for c in text)


def _pad(text: str, width: int, right: bool) -> str:
    space = " " * (width - _width(text))
    return space + text if right else text + space


def _aligned(line: Sequence[str], right: Collection[int]) -> list[bool]:
    return [column in right for column in range(len(line))]
