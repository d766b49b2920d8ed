import logging
import sys

from cnnserve.logs import Formatter


def record(message: str, *, failed: Exception | None = None) -> logging.LogRecord:
    found = (type(failed), failed, failed.__traceback__) if failed else None
    return logging.LogRecord("cnnserve", logging.ERROR, "", 0, "load: %s", (message,), found)


def test_a_message_is_one_line_without_control_characters() -> None:
    text = Formatter("%(levelname)s %(message)s").format(record('input is "\x1b[31m\n\x9b€"\r\x7f\u2028'))
    assert text == r'ERROR load: input is "\x1b[31m\n\x9b€"\r\x7f\u2028'


def test_a_traceback_keeps_its_lines_and_no_other_control_character() -> None:
    try:
        raise ValueError("\x1b[2J")
    except ValueError:
        failed = sys.exception()
    assert isinstance(failed, ValueError)
    text = Formatter("%(message)s").format(record("m", failed=failed))
    assert text.startswith("load: m\nTraceback (most recent call last):\n  File")
    assert text.endswith(r"ValueError: \x1b[2J")
