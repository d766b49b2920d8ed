"""Text for terminals: widths, colours and the progress bar."""

import os
import shutil
import time
import unicodedata
from collections import deque
from typing import Final, TextIO

_SHOWN_AFTER_S: Final = 1.0
_REDRAW_S: Final = 0.1
_RATE_OVER_S: Final = 5.0
_CLEAR_LINE: Final = "\r\x1b[K"
_BAR: Final = ("━", "╸", "─")
_PLAIN_BAR: Final = ("#", "#", "-")
# https://en.wikipedia.org/wiki/ANSI_escape_code#SGR
_BOLD: Final = "1"
_DIM: Final = "2"
_RED: Final = "31"
_CYAN: Final = "36"


def is_terminal(stream: TextIO) -> bool:
    """Returns whether the stream is a terminal that can move its cursor."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def has_colours(stream: TextIO) -> bool:
    """Returns whether to use colours: on a terminal, unless NO_COLOR is set (https://no-color.org)."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR")


def columns() -> int:
    """Returns the width of the terminal in columns, at least 20. 80 if the width is unknown."""
    return max(shutil.get_terminal_size().columns, 20)


def red(text: str) -> str:
    """Returns `text` in red, for errors."""
    return _painted(text, _RED)


def bold(text: str) -> str:
    """Returns `text` in bold, for headings."""
    return _painted(text, _BOLD)


def width(text: str) -> int:
    """Returns the columns that `text` takes: two for each wide East Asian character, none for combining marks."""
    if text.isascii():
        return len(text)
    return sum((unicodedata.east_asian_width(c) in "WF") + (not unicodedata.combining(c)) for c in text)


def cut_start(text: str, most: int) -> str:
    """Returns `text` in at most `most` columns. Keeps its end, because paths differ there."""
    return text if width(text) <= most else "…" + _cut(text[::-1], most - 1)[::-1]


def cut_end(text: str, most: int) -> str:
    """Returns `text` in at most `most` columns. Keeps its start."""
    return text if width(text) <= most else _cut(text, most - 1) + "…"


class Progress:
    """Draws a progress line again and again: images done, images/s, time left. Appears after 1 s.

    `total` may be set later. Until then the line has no bar.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.is_wanted = is_terminal(stream)
        self._colours = has_colours(stream)
        self._started = time.monotonic()
        self._drawn = self._started + _SHOWN_AFTER_S - _REDRAW_S
        self._samples: deque[tuple[float, int]] = deque([(self._started, 0)])
        self._is_shown = False
        self.was_shown = False
        self.total: int | None = None
        self._bar = _BAR if _can_show(stream, "".join(_BAR)) else _PLAIN_BAR

    def update(self, done: int, failed: int) -> None:
        """Draws the line if the last drawing was at least 0.1 s ago."""
        if not self.is_wanted or (now := time.monotonic()) < self._drawn + _REDRAW_S:
            return
        self._drawn = now
        self._samples.append((now, done))
        while self._samples[0][0] < now - _RATE_OVER_S:
            self._samples.popleft()
        line = self._line(done, failed, self._rate(now, done), columns() - 1)
        self._stream.write(_CLEAR_LINE + line)
        self._stream.flush()
        self._is_shown = self.was_shown = True

    def clear(self) -> None:
        """Removes the line, so that other text can be printed."""
        if self._is_shown:
            self._stream.write(_CLEAR_LINE)
            self._stream.flush()
            self._is_shown = False
            self._drawn = 0.0  # the next update draws the line again

    def summary(self, done: int, failed: int) -> str:
        """Returns one line about the finished work."""
        took_s = time.monotonic() - self._started
        text = f"{done:,} images in {duration(took_s)}, {done / max(took_s, 1e-3):,.0f}/s"
        return text + (f", {failed:,} failed" if failed else "")

    def _rate(self, now: float, done: int) -> float:
        since, before = self._samples[0]
        return (done - before) / max(now - since, 1e-3)

    def _line(self, done: int, failed: int, rate: float, room: int) -> str:
        failures = f"  {failed:,} failed" if failed else ""
        if self.total is None:
            return f"{done:,} images  {rate:,.0f}/s{failures}"[:room]
        total = max(self.total, done)
        left = f"{duration((total - done) / rate)} left" if rate else "-"
        figures = f"  {done:,}/{total:,} images  {rate:,.0f}/s  {left}"
        share = done / max(total, 1)
        space = min(40, room - 4 - 1 - len(figures) - len(failures))
        bar = self._drawing(share, space) + figures if space >= 8 else figures[1:]
        if space < 8:
            return f"{share:4.0%} {bar}{failures}"[:room]
        return f"{share:4.0%} {bar}" + (red(failures) if self._colours else failures)

    def _drawing(self, share: float, space: int) -> str:
        full, half, empty = self._bar
        filled = int(share * space)
        rest = space - filled
        done = full * filled
        if rest and share > 0:
            done, rest = done + half, rest - 1
        if self._colours:
            return _painted(done, _CYAN) + _painted(empty * rest, _DIM)
        return done + empty * rest


def duration(seconds: float) -> str:
    """Returns a duration as text: 2.3 s, 1:05 (minutes and seconds), 2:03:04 (with hours)."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _painted(text: str, code: str) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if text else text


def _cut(text: str, most: int) -> str:
    kept, used = 0, 0
    for character in text:
        used += width(character)
        if used > most:
            break
        kept += 1
    return text[:kept]


def _can_show(stream: TextIO, text: str) -> bool:
    try:
        text.encode(stream.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True
