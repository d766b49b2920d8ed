"""The progress line, and texts cut to the width of a column."""

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnserve_client.commands import terminal


class Screen(io.StringIO):
    """A terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


class AsciiScreen(Screen):
    encoding = "ascii"


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return now


def drawn(screen: Screen) -> str:
    return re.sub(r"\x1b\[\d*m", "", screen.getvalue().rpartition("\r\x1b[K")[2])


def test_short_work_shows_nothing(clock):
    progress = terminal.Progress(screen := Screen())
    progress.total = 10
    clock[0] += 0.9
    progress.update(9, 0)
    progress.clear()
    assert screen.getvalue() == ""
    assert not progress.was_shown


def test_long_work_shows_share_rate_and_time_left(clock):
    progress = terminal.Progress(screen := Screen())
    progress.total = 10_000
    clock[0] += 2
    progress.update(2_500, 0)
    assert drawn(screen) == " 25% " + "━" * 8 + "╸" + "─" * 23 + "  2,500/10,000 images  1,250/s  6.0 s left"
    clock[0] += 0.05
    progress.update(2_600, 0)
    assert "2,600" not in screen.getvalue()  # At most ten times a second.
    clock[0] += 1
    progress.update(5_000, 3)
    assert drawn(screen).endswith("  5,000/10,000 images  1,639/s  3.0 s left  3 failed")
    progress.clear()
    assert screen.getvalue().endswith("\r\x1b[K")


def test_the_rate_is_that_of_the_last_seconds(clock):
    progress = terminal.Progress(screen := Screen())
    for second in range(1, 21):
        clock[0] += 1
        progress.update(second * 10 if second < 10 else 100 + (second - 10) * 1000, 0)
    assert "1,000/s" in drawn(screen)


def test_without_a_total_there_is_no_bar(clock):
    progress = terminal.Progress(screen := Screen())
    clock[0] += 2
    progress.update(100, 1)
    assert drawn(screen) == "100 images  50/s  1 failed"


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 200])
@pytest.mark.parametrize("total", [None, 1, 100_000_000])
def test_the_line_fits_the_terminal(clock, monkeypatch, columns, total):
    monkeypatch.setenv("COLUMNS", str(columns))
    progress = terminal.Progress(screen := Screen())
    progress.total = total
    for done in (0, 1, 70_000_000, 100_000_000):
        clock[0] += 2
        progress.update(done, done // 3)
        assert terminal.width(drawn(screen)) < columns


def test_colours_only_where_they_are_wanted(clock, monkeypatch):
    def codes() -> list[str]:
        progress = terminal.Progress(screen := Screen())
        progress.total = 10
        clock[0] += 2
        progress.update(5, 1)
        return re.findall(r"\x1b\[\d+m", screen.getvalue())

    assert codes()
    monkeypatch.setenv("NO_COLOR", "1")
    assert codes() == []


@pytest.mark.parametrize("screen", [io.StringIO(), Screen()])
def test_files_and_dumb_terminals_get_no_line(clock, monkeypatch, screen):
    if screen.isatty():
        monkeypatch.setenv("TERM", "dumb")
    progress = terminal.Progress(screen)
    clock[0] += 2
    progress.update(5, 0)
    progress.clear()
    assert screen.getvalue() == ""


def test_a_terminal_without_line_drawing_gets_plain_letters(clock):
    progress = terminal.Progress(screen := AsciiScreen())
    progress.total = 10
    clock[0] += 2
    progress.update(5, 0)
    assert drawn(screen).isascii()
    assert "###" in drawn(screen)


def test_the_summary(clock):
    progress = terminal.Progress(Screen())
    clock[0] += 4
    assert progress.summary(10_000, 0) == "10,000 images in 4.0 s, 2,500/s"
    assert progress.summary(10_000, 2) == "10,000 images in 4.0 s, 2,500/s, 2 failed"


@pytest.mark.parametrize(("seconds", "text"), [(0.04, "0.0 s"), (9.9, "9.9 s"), (65, "1:05"), (7384, "2:03:04")])
def test_durations(seconds, text):
    assert terminal.duration(seconds) == text


@given(st.text(), st.integers(1, 30))
def test_what_is_cut_fits_and_keeps_its_side(text, most):
    for cut in (terminal.cut_start(text, most), terminal.cut_end(text, most)):
        assert terminal.width(cut) <= max(most, 1)
    assert text.endswith(terminal.cut_start(text, most).lstrip("…")) or "…" in text
    assert text.startswith(terminal.cut_end(text, most).rstrip("…")) or "…" in text
