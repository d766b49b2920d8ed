"""Prints messages and turns errors into exit statuses, which `cli` lists."""

import os
import sys
from collections.abc import Callable
from typing import TextIO

from cnnserve_client.errors import CnnserveError

from . import report, terminal


def guard(command: Callable[[], int]) -> int:
    """Runs a command and returns its exit status. Errors that a user can cause print one line and no traceback."""
    try:
        status = command()
        sys.stdout.flush()  # a broken pipe can still be handled here
    except CnnserveError as error:
        complain(str(error))
        return 1
    except KeyboardInterrupt:
        complain("interrupted")
        return 130
    except OSError as error:  # from standard output; errors of files and connections are CnnserveErrors
        # The interpreter flushes standard output again at its exit, which must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return 141
        complain(f"cannot write to standard output: {error.strerror}")
        return 1
    return status


def complain(text: str) -> None:
    """Prints one line with an error on standard error."""
    start = terminal.red("error:") if terminal.has_colours(sys.stderr) else "error:"
    say(f"{start} {report.printable(text)}", sys.stderr)


def say(text: str, stream: TextIO | None = None) -> None:
    """Prints lines. Characters that the stream cannot encode are escaped."""
    stream = stream or sys.stdout
    encoding = stream.encoding or "utf-8"
    print(text.encode(encoding, errors="backslashreplace").decode(encoding), file=stream)
