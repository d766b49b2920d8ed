"""What a command tells a person, and how it ends. Exit codes are told in `cli`."""

import os
import sys
from collections.abc import Callable
from typing import TextIO

from cnnserve_client.errors import CnnserveError

from . import report, terminal


def guard(command: Callable[[], int]) -> int:
    """Run a command; what a user can cause ends in one line, not in a traceback."""
    try:
        status = command()
        sys.stdout.flush()  # here, where a broken pipe can still be handled
    except CnnserveError as error:
        complain(str(error))
        return 1
    except KeyboardInterrupt:
        complain("interrupted")
        return 130
    except OSError as error:  # standard output; what can happen to files and connections was caught nearer by
        # The interpreter flushes once more on its way out and must not fail there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return 141
        complain(f"cannot write the output: {error.strerror}")
        return 1
    return status


def complain(text: str) -> None:
    """One line on standard error."""
    start = terminal.red("error:") if terminal.has_colours(sys.stderr) else "error:"
    say(f"{start} {report.printable(text)}", sys.stderr)


def say(text: str, stream: TextIO | None = None) -> None:
    """A line, or several; what the stream cannot show is escaped."""
    stream = stream or sys.stdout
    encoding = stream.encoding or "utf-8"
    print(text.encode(encoding, errors="backslashreplace").decode(encoding), file=stream)
