"""One line on stderr per load and per problem."""

import logging
import re
import sys
import warnings
from types import TracebackType

# C0, DEL and C1: names from files and from clients may hold what moves a terminal's cursor or looks like a new line.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_CONTROL_IN_LINES = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")
_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class Formatter(logging.Formatter):
    """Messages as one line each, with control characters escaped; tracebacks keep their lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """The line of one record."""
        return _CONTROL.sub(_escape, super().formatMessage(record))

    def formatException(self, ei: _ExcInfo) -> str:  # noqa: N802
        """The traceback below it."""
        return _CONTROL_IN_LINES.sub(_escape, super().formatException(ei))


def configure(level: str) -> None:
    """Sets up the root logger; `level` is debug, info, warning or error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    # Its start and stop are part of ours.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    # Pillow warns about odd files; each of those is somebody's answer already.
    warnings.filterwarnings("ignore", module="PIL")


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()
