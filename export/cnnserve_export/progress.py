"""What a person sees while an export runs: one line per stage, with its time and its findings.

On a terminal the running stage is shown in place, with a bar where its steps are counted; elsewhere nothing is written
before a stage's end, so that logs hold one line per stage.
"""

import shutil
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TextIO, TypeVar

_CLEAR_LINE = "\r\x1b[K"
_BAR = 24
# Redrawing more often is nothing but flicker.
_INTERVAL_S = 0.1

_T = TypeVar("_T")


class Progress:
    """Writes stages to a stream; on a terminal the running stage is shown and rewritten in place."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live = stream.isatty()
        self._full, self._empty = "█░" if (stream.encoding or "").lower().startswith("utf") else "#-"

    @contextmanager
    def stage(self, name: str) -> Iterator["Stage"]:
        """Times one stage and prints its line at the end; a stage that raises leaves no line."""
        stage = Stage(self, name)
        stage.update("…")
        began = time.perf_counter()
        try:
            yield stage
        finally:
            self._write("", end="")
        self._write(f"{name:<9}{time.perf_counter() - began:6.1f} s  {stage.finding}".rstrip())

    def show(self, text: str) -> None:
        """Replaces the running stage's line; nothing where the stream is no terminal."""
        if self._live:
            # A line that wraps could not be taken back.
            self._write(text[: shutil.get_terminal_size().columns - 1], end="")

    def bar(self, fraction: float) -> str:
        """A bar that is full at 1."""
        full = round(min(1.0, fraction) * _BAR)
        return self._full * full + self._empty * (_BAR - full)

    def _write(self, text: str, end: str = "\n") -> None:
        self._stream.write((_CLEAR_LINE if self._live else "") + text + end)
        self._stream.flush()


class Stage:
    """One running stage: `finding` is what its line will say."""

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress = progress
        self._name = name
        self._total = -1
        self._first = 0
        self._began = self._shown = 0.0
        self.finding = ""

    def update(self, text: str) -> None:
        """Shows how far the stage is."""
        self._progress.show(f"{self._name:<9}{text}")

    def advance(self, done: int, total: int, text: str = "") -> None:
        """Shows a bar, the count and the time left, judged by the steps since the first call for this total.

        `text` says of what.
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
        """The items, with a bar that moves as they are used up; `total` where their number cannot be asked for."""
        count = total if total is not None or not isinstance(items, Sized) else len(items)
        for number, item in enumerate(items):
            if count is None:
                self.update(f"{number} {text}".rstrip())
            else:
                self.advance(number, count, text)
            yield item
        if count is not None:
            self.advance(count, count, text)
