"""Shows the progress of an export: one line for each stage, with its time and what it found.

On a terminal, the line of the running stage is rewritten in place, with a bar if its steps are counted. Elsewhere
nothing is written before the end of a stage, so that logs have one line for each stage.
"""

import shutil
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TextIO, TypeVar

_CLEAR_LINE = "\r\x1b[K"
_BAR = 24
# Drawn more often, the line would only flicker.
_INTERVAL_S = 0.1

_T = TypeVar("_T")


class Progress:
    """Writes the lines of stages to a stream; on a terminal, the line of the running stage is rewritten in place."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live = stream.isatty()
        self._full, self._empty = "█░" if (stream.encoding or "").lower().startswith("utf") else "#-"

    @contextmanager
    def stage(self, name: str) -> Iterator["Stage"]:
        """Times one stage and writes its line at the end; if the stage raises an exception, no line is written."""
        stage = Stage(self, name)
        stage.update("…")
        began = time.perf_counter()
        try:
            yield stage
        finally:
            self._write("", end="")
        self._write(f"{name:<9}{time.perf_counter() - began:6.1f} s  {stage.finding}".rstrip())

    def show(self, text: str) -> None:
        """Replaces the line of the running stage; does nothing if the stream is not a terminal."""
        if self._live:
            # A line that wraps could not be erased.
            self._write(text[: shutil.get_terminal_size().columns - 1], end="")

    def bar(self, fraction: float) -> str:
        """Returns a bar that is empty at 0 and full at 1."""
        full = round(min(1.0, fraction) * _BAR)
        return self._full * full + self._empty * (_BAR - full)

    def _write(self, text: str, end: str = "\n") -> None:
        self._stream.write((_CLEAR_LINE if self._live else "") + text + end)
        self._stream.flush()


class Stage:
    """One running stage; `finding` is the text of its line."""

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress = progress
        self._name = name
        self._total = -1
        self._first = 0
        self._began = self._shown = 0.0
        self.finding = ""

    def update(self, text: str) -> None:
        """Shows `text` in the line of the stage while it runs."""
        self._progress.show(f"{self._name:<9}{text}")

    def advance(self, done: int, total: int, text: str = "") -> None:
        """Shows a bar, `done` of `total`, and the time left, estimated from the steps since the first call.

        Another `total` starts a new count. `text` says what is counted.
        """
        now = time.perf_counter()
        if total != self._total or done < self._first:
            self._total, self._began, self._first = total, now, done
        elif now - self._shown < _INTERVAL_S and done < total:
            return
        self._shown = now
        steps = done - self._first
        left = f"  {(now - self._began) / steps * (total - done):.0f} s left" if steps > 0 and done < total else ""
        self.update(f"{self._progress.bar(done / max(1, total))} {done}/{total} {text}".rstrip() + left)

    def track(self, items: Iterable[_T], total: int | None = None, text: str = "") -> Iterator[_T]:
        """Yields the items and moves a bar as they are used.

        `total` is the number of items, for items without a length; `text` says what is counted.
        """
        count = total if total is not None or not isinstance(items, Sized) else len(items)
        for number, item in enumerate(items):
            if count is None:
                self.update(f"{number} {text}".rstrip())
            else:
                self.advance(number, count, text)
            yield item
        if count is not None:
            self.advance(count, count, text)
