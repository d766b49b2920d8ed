"""How classified images read: an aligned table for people, lines of JSON or CSV for programs. Returns text only."""

import csv
import io
import json
import time
from typing import Any, Final, Protocol

from cnnserve_client.results import Class, ImageResult

from . import report, terminal

# Enough rows to know how wide the columns will be, and no longer than a person waits gladly.
_SAMPLE_ROWS: Final = 200
_SAMPLE_S: Final = 0.5
_SLACK: Final = 4


class Format(Protocol):
    """Turns results into text, record by record."""

    def head(self) -> str:
        """What comes before all records."""

    def record(self, name: str, result: ImageResult) -> str:
        """One image."""

    def rest(self) -> str:
        """What was held back."""


class JsonLines:
    """One JSON object a line."""

    def __init__(self, model: str) -> None:
        self._model = model

    def head(self) -> str:
        """Nothing."""
        return ""

    def record(self, name: str, result: ImageResult) -> str:
        """One line."""
        # ASCII: file names may hold bytes that are no text, and terminals codes that are no letters.
        return json.dumps({"file": name, "model": self._model, **_document(result)}) + "\n"

    def rest(self) -> str:
        """Nothing."""
        return ""


class Csv:
    """A header, then a row for each class of each image; a failed image's row has its error."""

    HEADER: Final = ("file", "version", "rank", "index", "label", "probability", "error")

    def __init__(self) -> None:
        self._buffer = io.StringIO()
        self._writer = csv.writer(self._buffer, lineterminator="\n")

    def head(self) -> str:
        """The columns' names."""
        return self._text([self.HEADER])

    def record(self, name: str, result: ImageResult) -> str:
        """As many rows as classes."""
        if result.error is not None:
            return self._text([(name, result.version, "", "", "", "", str(result.error))])
        return self._text(
            [
                # 9 digits are what a 32-bit float has.
                (name, result.version, rank, top.index, top.label, f"{top.probability:.9g}", "")
                for rank, top in enumerate(result.classes, start=1)
            ]
        )

    def rest(self) -> str:
        """Nothing."""
        return ""

    def _text(self, rows: list[tuple[Any, ...]]) -> str:
        self._writer.writerows(rows)
        text = self._buffer.getvalue()
        self._buffer.seek(0)
        self._buffer.truncate()
        return text


class Table:
    """One line per class, the file named on its first.

    Columns are as wide as the first rows need. `room` is the terminal's width, to which names and labels are cut;
    None: nothing is cut. A failed image has its error in place of a label, unless `with_failures` is off because the
    same terminal is told anyway.
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
        """Nothing yet: the header is as wide as the columns."""
        return ""

    def record(self, name: str, result: ImageResult) -> str:
        """An image's lines; nothing while the first ones are looked at."""
        rows = self._rows(name, result)
        if self._widths is not None:
            return self._text(rows, self._widths)
        self._sample += rows
        self._began = self._began or time.monotonic()
        if len(self._sample) >= _SAMPLE_ROWS or time.monotonic() > self._began + _SAMPLE_S:
            return self._first(slack=_SLACK)
        return ""

    def rest(self) -> str:
        """The lines of a short table."""
        return self._first(slack=0) if self._widths is None and self._sample else ""

    def _first(self, slack: int) -> str:
        self._widths = self._fitted(slack)
        head, self._sample, rows = self._text([self._HEADER], self._widths), [], self._sample
        return (terminal.bold(head[:-1]) + "\n" if self._colours else head) + self._text(rows, self._widths)

    def _fitted(self, slack: int) -> tuple[int, int]:
        """Widths of the file and the label column."""
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
