"""Sets up logging to standard error: one line per message, and nobody waits until it is written.

If standard error is a pipe that nobody reads, a write to it blocks. So a thread of its own writes the lines, from a
queue with a limit. Messages beyond the limit are dropped and counted.
"""

import contextlib
import json
import logging
import os
import re
import select
import stat
import threading
import warnings
from collections import deque
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

# C0, DEL, C1, Unicode's line separators, and what turns the direction of a text: names from files and clients may hold
# them, and they could move the cursor of a terminal, look like a new line, or show the line in another order.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
_CONTROL_IN_LINES = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
_STDERR = 2
# The logger of audit lines: who did what, from where, and what came of it.
AUDIT = "cnnserve.audit"
# Lines that wait to be written. A server that logs a line for each failed request fills it in seconds.
_LIMIT_BYTES = 2**20
# At the end, lines get at least this long to be written, in seconds.
_PATIENCE_S = 1.0
# How often a blocked writer looks whether it should end, in seconds.
_LOOK_S = 0.2
# Lines about single requests, which are written only if the operator asks for them.
ACCESS = "cnnserve.access"
# Lines about what administrators did and who was refused.
AUDIT = "cnnserve.audit"
# The attribute of a record that concerns a request: the ids of the request by name.
REQUEST = "request_ids"
_PLAIN = re.compile(r"[\w.:/%\[\]@+-]+")
_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class Fields(dict[str, Any]):
    """A message that consists of named values. As text it is NAME=VALUE for each, with quotes where a value needs them.

    A name that Python reserves ends with an underscore, which is not written.
    """

    def __str__(self) -> str:
        return " ".join(f"{name.rstrip('_')}={_quoted(value)}" for name, value in self.items())


class Formatter(logging.Formatter):
    """Formats each message as one line with its control characters escaped. Tracebacks keep their lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """Returns the line of one record."""
        text = super().formatMessage(record)
        if ids := getattr(record, REQUEST, None):
            text += f" {Fields(ids)}"
        return _CONTROL.sub(_escape, text)

    def formatException(self, ei: _ExcInfo) -> str:  # noqa: N802
        """Returns the traceback that follows the line."""
        return _CONTROL_IN_LINES.sub(_escape, super().formatException(ei))


class JsonFormatter(logging.Formatter):
    """Formats each message as one JSON object on one line: time (UTC), level, logger, message or fields, exception."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line of one record."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        document: dict[str, Any] = {"time": time, "level": record.levelname, "logger": record.name}
        if isinstance(record.msg, Fields):
            document |= {name.rstrip("_"): value for name, value in record.msg.items()}
        else:
            document["message"] = record.getMessage()
        document |= getattr(record, REQUEST, {})
        if record.exc_info and record.exc_info[0]:
            document["exception"] = self.formatException(record.exc_info)
        # JSON escapes C0 itself. The others may only be in texts, where an escape stands for them.
        return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(document, ensure_ascii=False))


class BackgroundHandler(logging.Handler):
    """Writes lines to a file descriptor on a thread. At most `limit_bytes` of lines wait; further ones are dropped."""

    def __init__(self, descriptor: int, limit_bytes: int = _LIMIT_BYTES) -> None:
        super().__init__()
        # The number of messages that were dropped.
        self.dropped = 0
        # Of them, those of the audit log.
        self.dropped_audits = 0
        self._reported = 0
        self._descriptor = descriptor
        self._limit_bytes = limit_bytes
        self._lines: deque[bytes] = deque()
        self._held_bytes = 0
        self._ended = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._write_all, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Puts the line of a record into the queue, or drops it if the queue is full."""
        try:
            line = self._line(record)
        except Exception:
            self.handleError(record)
            return
        with self._changed:
            if self._held_bytes + len(line) > self._limit_bytes:
                self.dropped += 1
                self.dropped_audits += record.name == AUDIT
                return
            if count := self.dropped - self._reported:
                line = self._notice(count) + line
                self._reported = self.dropped
            self._lines.append(line)
            self._held_bytes += len(line)
            self._changed.notify_all()

    def flush(self) -> None:
        """Waits until every line is written, for 1 s at most."""
        with self._changed:
            self._changed.wait_for(lambda: not self._held_bytes, _PATIENCE_S)

    def close(self) -> None:
        """Ends the thread. Lines that nobody reads are lost."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._thread.join(_PATIENCE_S)
        super().close()

    def _line(self, record: logging.LogRecord) -> bytes:
        return f"{self.format(record)}\n".encode(errors="backslashreplace")

    def _notice(self, count: int) -> bytes:
        text = "%d log messages were dropped here, because standard error was not read; read it, or write it to a file"
        return self._line(logging.LogRecord(__name__, logging.WARNING, "", 0, text, (count,), None))

    def _write_all(self) -> None:
        while (line := self._next()) is not None:
            written = self._write(line)
            with self._changed:
                self._held_bytes -= len(line)
                self.dropped += not written
                self._changed.notify_all()
                if self._ended and not written:
                    return

    def _next(self) -> bytes | None:
        with self._changed:
            self._changed.wait_for(lambda: self._lines or self._ended)
            return self._lines.popleft() if self._lines else None

    def _write(self, line: bytes) -> bool:
        """Returns whether the line was written. It is not if the reader has gone, or is silent at the end."""
        rest = memoryview(line)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:
                if self._ended:
                    return False
                select.select((), (self._descriptor,), (), _LOOK_S)
            except OSError:
                return False
        return True


def configure(level: str, style: str = "text") -> None:
    """Sets up the root logger. `level` is debug, info, warning or error; `style` is text or json."""
    _unblock(_STDERR)
    handler = BackgroundHandler(_STDERR)
    text = Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if style == "json" else text)
    # The debug messages of libraries (grpc, Pillow, asyncio) are about themselves.
    logging.basicConfig(handlers=[handler], level=max(logging.INFO, logging.getLevelName(level.upper())), force=True)
    logging.getLogger("cnnserve").setLevel(level.upper())
    for name in (ACCESS, AUDIT):
        # Whoever asks for access lines wants them at each level, and audit lines are always written.
        logging.getLogger(name).setLevel(logging.INFO)
    # The server logs its own start and stop. Clients of object stores log each address, which may hold a signature.
    for name in ("uvicorn", "azure", "httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Pillow warns about unusual image files, but their clients already get a result or an error.
    warnings.filterwarnings("ignore", module="PIL")


def dropped() -> int:
    """Returns the number of log messages that were dropped since the start."""
    return sum(handler.dropped for handler in _handlers())


def dropped_audits() -> int:
    """Returns the number of audit lines that were dropped since the start."""
    return sum(handler.dropped_audits for handler in _handlers())


def _handlers() -> list[BackgroundHandler]:
    return [handler for handler in logging.getLogger().handlers if isinstance(handler, BackgroundHandler)]


def _unblock(descriptor: int) -> None:
    """If a descriptor is a pipe, makes writes of this process to it fail at once instead of waiting for a reader.

    Libraries (grpc, ONNX Runtime) write to standard error themselves, on whatever thread they are. Opened anew, the
    pipe stays as it is for the other processes that hold it.
    """
    with contextlib.suppress(OSError):
        if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            opened = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK)
            os.dup2(opened, descriptor)
            os.close(opened)


def _quoted(value: object) -> str:
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()
