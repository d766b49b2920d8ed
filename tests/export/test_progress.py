"""Progress: bars on a terminal, otherwise one line for each stage."""

import contextlib
import os
import pty
import re
import time
from collections.abc import Iterator
from io import StringIO
from typing import TextIO

import pytest

from cnnserve_export import progress
from cnnserve_export.progress import Progress


class Terminal:
    """A real terminal. A test can read what `stream` has written to it."""

    def __init__(self, encoding: str) -> None:
        self._master, slave = pty.openpty()
        self.stream: TextIO = os.fdopen(slave, "w", encoding=encoding)

    def read(self) -> str:
        """Returns everything that was written. Afterwards, nothing can be written."""
        self.stream.close()
        data = b""
        # On Linux, a read ends with EIO as soon as the other end of the terminal is closed.
        with contextlib.suppress(OSError):
            while part := os.read(self._master, 4096):
                data += part
        return data.decode("utf-8")

    def close(self) -> None:
        self.stream.close()
        os.close(self._master)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    monkeypatch.setattr(progress, "_INTERVAL_S", 0.0)
    made = Terminal("utf-8")
    yield made
    made.close()


def frames(text: str) -> list[str]:
    """Returns the texts of the progress line, one after the other."""
    return [frame for frame in text.split("\r\x1b[K") if frame]


def test_a_terminal_shows_a_bar_and_then_the_finding(terminal: Terminal) -> None:
    with Progress(terminal.stream).stage("verify") as stage:
        assert list(stage.track("abcd", text="images")) == list("abcd")
        stage.finding = "done"
    shown = frames(terminal.read())
    assert shown[0] == "verify   …"
    assert shown[1] == f"verify   {'░' * 24} 0/4 images"
    assert re.fullmatch(rf"verify   {'█' * 12}{'░' * 12} 2/4 images  \d+ s left", shown[3])
    assert shown[5] == f"verify   {'█' * 24} 4/4 images"
    assert re.fullmatch(r"verify +\d+\.\d s  done\r\n", shown[6])


def test_the_time_left_follows_from_the_steps_so_far(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    with Progress(terminal.stream).stage("train") as stage:
        for done in (1, 2, 11):
            clock[0] = 100.0 + 3 * done
            stage.advance(done, 31, f"epochs, loss {1 / done:.1f}")
        stage.advance(1, 5)
    shown = frames(terminal.read())
    assert shown[1].endswith("1/31 epochs, loss 1.0")
    assert shown[2].endswith("2/31 epochs, loss 0.5  87 s left")
    assert shown[3].endswith("11/31 epochs, loss 0.1  60 s left")
    # A new total starts a new count.
    assert shown[4].endswith("1/5")


def test_a_stage_redraws_no_more_often_than_a_person_sees(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_INTERVAL_S", 0.1)
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    with Progress(terminal.stream).stage("verify") as stage:
        for done in range(1001):
            clock[0] = 1 + done / 1000
            stage.advance(done, 1000)
    shown = frames(terminal.read())
    assert 10 <= len(shown) <= 14
    assert " 1000/1000" in shown[-2]


def test_a_line_never_wraps(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    with Progress(terminal.stream).stage("weights") as stage:
        stage.update("x" * 500)
        stage.advance(1, 2, "y" * 500)
    assert all(len(frame) < 40 for frame in frames(terminal.read()))


def test_a_terminal_without_unicode_gets_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal("ascii")
    try:
        assert Progress(terminal.stream).bar(0.5) == "#" * 12 + "-" * 12
    finally:
        terminal.close()


def test_a_log_holds_one_line_per_stage() -> None:
    log = StringIO()
    written = Progress(log)
    with written.stage("train") as stage:
        for _ in stage.track(range(100)):
            stage.update("working")
        for number in stage.track(iter([1, 2])):
            stage.advance(number, 2)
        stage.finding = "30 epochs"
    assert re.fullmatch(r"train +\d+\.\d s  30 epochs\n", log.getvalue())


def test_items_without_a_number_are_counted(terminal: Terminal) -> None:
    with Progress(terminal.stream).stage("read") as stage:
        assert list(stage.track(iter("ab"), text="files")) == ["a", "b"]
        assert list(stage.track(iter("ab"), total=2)) == ["a", "b"]
        assert list(stage.track([])) == []
    shown = frames(terminal.read())
    assert shown[1:3] == ["read     0 files", "read     1 files"]
    assert shown[3].endswith("0/2")
    assert shown[6].endswith("0/0")
