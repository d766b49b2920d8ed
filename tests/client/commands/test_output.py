"""Records are written completely or not at all, even if an interrupt or an error ends the command."""

import os
import signal
import threading
from pathlib import Path

import pytest

from cnnserve_client import Class, ImageResult
from cnnserve_client.commands.formats import JsonLines
from cnnserve_client.commands.output import File, Interrupts, Records

RESULT = ImageResult((Class(7, "seven", 0.5),))


class Sink:
    """Records what is written to it. A test can act during a write."""

    def __init__(self, meanwhile=lambda: None) -> None:
        self.texts: list[str] = []
        self.meanwhile = meanwhile

    def write(self, text: str) -> None:
        self.meanwhile()
        self.texts.append(text)


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def test_an_interrupt_waits_for_the_end_of_a_write():
    with Interrupts() as interrupts:
        records = Records(JsonLines("m"), sink := Sink(interrupt), interrupts)
        records.add("a", RESULT)
        with pytest.raises(KeyboardInterrupt):
            records.flush()
        assert len(sink.texts) == 1
        sink.meanwhile = lambda: None
        records.add("b", RESULT)
        records.finish()
    assert "".join(sink.texts).count("\n") == 2


def test_elsewhere_an_interrupt_is_an_interrupt():
    before = signal.getsignal(signal.SIGINT)
    with Interrupts(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_thread_may_write_too():
    failures = []

    def work() -> None:
        try:
            with Interrupts() as interrupts:
                Records(JsonLines("m"), Sink(), interrupts).finish()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failures


def test_a_file_is_written_over(tmp_path):
    path = tmp_path / "out"
    path.write_text("what was there before, and longer")
    file = File(str(path))
    file.write("Größe\udcff\n")
    file.close()
    assert path.read_bytes() == "Größe\\udcff\n".encode()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_an_error_at_once():
    file = File("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        file.write("x")
    file.close()


def test_a_disk_that_fills_up_midway_keeps_whole_records(tmp_path, monkeypatch):
    path, real = tmp_path / "out", os.write
    file = File(str(path))
    file.write("first\n")

    def half(number, data):
        if len(data) < 4:
            raise OSError(28, "No space left on device")
        return real(number, bytes(data)[:4])

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(OSError, match="No space left"):
        file.write("second\n")
    monkeypatch.undo()
    file.close()
    assert path.read_text() == "first\n"
