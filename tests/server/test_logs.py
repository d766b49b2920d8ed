import contextlib
import fcntl
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

from cnnserve.logs import AUDIT, BackgroundHandler, Formatter, JsonFormatter


def record(message: str, *, failed: Exception | None = None) -> logging.LogRecord:
    found = (type(failed), failed, failed.__traceback__) if failed else None
    return logging.LogRecord("cnnserve", logging.ERROR, "", 0, "load: %s", (message,), found)


def test_a_message_is_one_line_without_control_characters() -> None:
    text = Formatter("%(levelname)s %(message)s").format(record('input is "\x1b[31m\n\x9b€"\r\x7f\u2028\u202e\u2066'))
    assert text == r'ERROR load: input is "\x1b[31m\n\x9b€"\r\x7f\u2028\u202e\u2066'


def test_json_has_neither_further_lines_nor_turned_texts() -> None:
    message = 'a", "level": "INFO\n{}\u2028\u202e\x9b'
    line = JsonFormatter().format(record(message))
    assert json.loads(line)["message"] == f"load: {message}"
    assert line.isascii()
    assert line.isprintable()


def test_a_traceback_keeps_its_lines_and_no_other_control_character() -> None:
    try:
        raise ValueError("\x1b[2J")
    except ValueError:
        failed = sys.exception()
    assert isinstance(failed, ValueError)
    text = Formatter("%(message)s").format(record("m", failed=failed))
    assert text.startswith("load: m\nTraceback (most recent call last):\n  File")
    assert text.endswith(r"ValueError: \x1b[2J")


def log_to(descriptor: int, limit_bytes: int = 2**20) -> tuple[logging.Logger, BackgroundHandler]:
    handler = BackgroundHandler(descriptor, limit_bytes)
    handler.setFormatter(Formatter("%(levelname)s %(message)s"))
    logger = logging.Logger("test")
    logger.addHandler(handler)
    return logger, handler


def test_audit_lines_that_are_dropped_are_counted() -> None:
    reader, writer = os.pipe()
    # No line fits.
    handler = BackgroundHandler(writer, limit_bytes=1)
    for name in ("cnnserve", AUDIT, AUDIT):
        handler.emit(logging.LogRecord(name, logging.INFO, "", 0, "line", (), None))
    assert (handler.dropped, handler.dropped_audits) == (3, 2)
    handler.close()
    os.close(reader)
    os.close(writer)


def test_messages_that_nobody_reads_are_dropped_counted_and_never_waited_for() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    # The pipe is full before the first line, so none leaves the queue while others are dropped.
    os.write(writer, b"\n" * 4096)
    logger, handler = log_to(writer, 2**14)
    for number in range(1000):
        logger.info("%0100d", number)
    dropped = handler.dropped
    assert 700 < dropped < 1000
    with os.fdopen(reader, "rb") as pipe:
        read = b""
        os.set_blocking(reader, False)
        while handler._held_bytes:
            with contextlib.suppress(BlockingIOError):
                read += os.read(reader, 4096)
        os.set_blocking(reader, True)
        logger.info("again")
        handler.flush()
        os.close(writer)
        read += pipe.read()
        handler.close()
    lines = read.decode().lstrip("\n").splitlines()
    # Those that were kept are whole and in order, and the gap is told.
    kept = 1000 - dropped
    assert lines[:kept] == [f"INFO {number:0100d}" for number in range(kept)]
    assert lines[kept].startswith(f"WARNING {dropped} log messages were dropped here")
    assert lines[kept + 1 :] == ["INFO again"]


def test_a_reader_that_has_gone_costs_messages_only() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    logger, handler = log_to(writer)
    logger.info("lost")
    handler.flush()
    assert handler.dropped == 1
    handler.close()
    os.close(writer)


def test_the_end_waits_for_lines_that_are_read_and_for_no_others(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        logger, handler = log_to(file.fileno())
        for number in range(1000):
            logger.info("%d", number)
        handler.close()
    assert len((tmp_path / "log").read_text().splitlines()) == 1000
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    logger, handler = log_to(writer)
    logger.info("x" * 2**18)
    handler.close()
    assert not handler._thread.is_alive()
    os.close(reader)
    os.close(writer)


def test_debug_means_our_messages() -> None:
    # In a process of its own, because it changes the loggers of the process.
    code = """
import logging
from cnnserve import logs
logs.configure("debug")
for name in ("grpc._cython.cygrpc", "PIL.PngImagePlugin", "asyncio", "cnnserve.registry"):
    logging.getLogger(name).debug("from %s", name)
    logging.getLogger(name).info("news of %s", name)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said = re.findall(r"(?:from|news of) [\w.]+", ended.stderr)
    assert [line for line in said if line.startswith("from")] == ["from cnnserve.registry"]
    assert len(said) == 5
