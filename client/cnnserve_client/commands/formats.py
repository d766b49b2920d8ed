"""Formats results as an aligned table for people, or as JSON lines or CSV for programs. Prints nothing."""

import csv
import io
import json
import time
from typing import Any, Final, Protocol

from cnnserve_client.results import Class, ImageResult

from . import report, terminal

# The table waits for this many rows, but at most for this many seconds, and then sets the width of its columns.
_SAMPLE_ROWS: Final = 200
_SAMPLE_S: Final = 0.5
_SLACK: Final = 4


class Format(Protocol):
    """Turns results into text, one record for each image."""

    def head(self) -> str:
        """Returns the text before all records."""

    def record(self, name: str, result: ImageResult) -> str:
        """Returns the text for one image. May hold it back."""

    def rest(self) -> str:
        """Returns the text that was held back."""


class JsonLines:
    """Formats results as JSON, one object a line."""

    def __init__(self, model: str) -> None:
        self._model = model

    def head(self) -> str:
        """Returns nothing."""
        return ""

    def record(self, name: str, result: ImageResult) -> str:
        """Returns one line."""
        # ASCII, because file names may contain bytes that are not UTF-8, and text may contain control characters.
        return json.dumps({"file": name, "model": self._model, **_document(result)}) + "\n"

    def rest(self) -> str:
        """Returns nothing."""
        return ""


class Csv:
    """Formats results as CSV: a header, then one row for each class of each image, or one row with its error."""

    HEADER: Final = ("file", "version", "rank", "index", "label", "probability", "error")

    def __init__(self) -> None:
        self._buffer = io.StringIO()
        self._writer = csv.writer(self._buffer, lineterminator="\n")

    def head(self) -> str:
        """Returns the names of the columns."""
        return self._text([self.HEADER])

    def record(self, name: str, result: ImageResult) -> str:
        """Returns one row for each class, or one row with the error."""
        if result.error is not None:
            return self._text([(name, result.version, "", "", "", "", str(result.error))])
        return self._text(
            [
                # 9 significant digits identify every 32-bit float.
                (name, result.version, rank, top.index, top.label, f"{top.probability:.9g}", "")
                for rank, top in enumerate(result.classes, start=1)
            ]
        )

    def rest(self) -> str:
        """Returns nothing."""
        return ""

    def _text(self, rows: list[tuple[Any, ...]]) -> str:
        self._writer.writerows(rows)
        text = self._buffer.getvalue()
        self._buffer.seek(0)
        self._buffer.truncate()
        return text


class Table:
    """Formats results as a table with one line for each class. The first line of an image has the file's name.

    The first rows decide the width of the columns.

    Args:
        room: width of the terminal in columns; names and labels are cut to fit. None: nothing is cut.
        colours: print the header in bold.
        with_failures: add a line with the error for each failed image. False if the terminal shows errors anyway.
    """

    _HEADER: Final = ("FILE", "RANK", "PROBABILITY", "LABEL")

    def __init__(self, room: int | None, *, colours: bool, with_failures: bool) -> None:
        self._room = room
        self._colours = colours
        self._with_failures = with_failures
        self._sample: list[tuple[str, str, str, str]] = []
        self._began = 0.0
        self._widths: tuple[int, int] | None = None

    def head(self) -> str:
        """Returns nothing. The header follows as soon as the width of the columns is known."""
        return ""

    def record(self, name: str, result: ImageResult) -> str:
        """Returns the lines of an image, or nothing while the first rows are collected."""
        rows = self._rows(name, result)
        if self._widths is not None:
            return self._text(rows, self._widths)
        self._sample += rows
        self._began = self._began or time.monotonic()
        if len(self._sample) >= _SAMPLE_ROWS or time.monotonic() > self._began + _SAMPLE_S:
            return self._first(slack=_SLACK)
        return ""

    def rest(self) -> str:
        """Returns the lines that are still collected, if the table is short."""
        return self._first(slack=0) if self._widths is None and self._sample else ""

    def _first(self, slack: int) -> str:
        self._widths = self._fitted(slack)
        head, self._sample, rows = self._text([self._HEADER], self._widths), [], self._sample
        return (terminal.bold(head[:-1]) + "\n" if self._colours else head) + self._text(rows, self._widths)

    def _fitted(self, slack: int) -> tuple[int, int]:
        """Returns the widths of the columns for file and label."""
        rows = [self._HEADER, *self._sample]
        file, label = (max(terminal.width(row[column]) for row in rows) for column in (0, 3))
        if self._room is None:
            return file + slack, label
        room = self._room - len(self._HEADER[1]) - len(self._HEADER[2]) - 3 * 2
        label = max(min(label, room // 2), room - file) if file + label > room else label
        return max(4, min(file + slack, room - label)), label

    def _rows(self, name: str, result: ImageResult) -> list[tuple[str, str, str, str]]:
        name = report.printable(name)
        if result.error is not None:
            return [(name, "-", "-", report.printable(f"error: {result.error}"))] if self._with_failures else []
        return [
            (name if rank == 1 else "", str(rank), f"{top.probability:.2%}", _label(top))
            for rank, top in enumerate(result.classes, start=1)
        ]

    def _text(self, rows: list[tuple[str, str, str, str]], widths: tuple[int, int]) -> str:
        return "".join(self._line(row, *widths) for row in rows)

    def _line(self, row: tuple[str, str, str, str], file_room: int, label_room: int) -> str:
        name, rank, probability, label = row
        if self._room is not None:
            name, label = terminal.cut_start(name, file_room), terminal.cut_end(label, label_room)
        space = " " * (file_room - terminal.width(name))
        return f"{name}{space}  {rank:>4}  {probability:>11}  {label}\n"


def _label(top: Class) -> str:
    return report.printable(top.label) or f"class {top.index}"


def _document(result: ImageResult) -> dict[str, Any]:
    if result.error is not None:
        return {"version": result.version, "error": {"code": result.error.code, "message": str(result.error)}}
    return {
        "version": result.version,
        "classes": [{"index": c.index, "label": c.label, "probability": c.probability} for c in result.classes],
    }
