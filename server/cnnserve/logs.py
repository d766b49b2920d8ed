"""Sets up logging to standard error: one line per message."""

import logging
import re
import sys
import warnings
from types import TracebackType

# C0, DEL, C1 and Unicode's line separators: names from files and clients may hold them, and they could move the cursor
# of a terminal or look like a new line.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_CONTROL_IN_LINES = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")
_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class Formatter(logging.Formatter):
    """Formats each message as one line with its control characters escaped. Tracebacks keep their lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """Returns the line of one record."""
        return _CONTROL.sub(_escape, super().formatMessage(record))

    def formatException(self, ei: _ExcInfo) -> str:  # noqa: N802
        """Returns the traceback that follows the line."""
        return _CONTROL_IN_LINES.sub(_escape, super().formatException(ei))


def configure(level: str) -> None:
    """Sets up the root logger. `level` is debug, info, warning or error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    # The server logs its own start and stop.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    # Pillow warns about unusual image files, but their clients already get a result or an error.
    warnings.filterwarnings("ignore", module="PIL")


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()
