"""Where records go: standard output or a file, whole records only, whatever interrupts."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any, Final, Protocol, Self, TextIO

from cnnserve_client.results import ImageResult

from .formats import Format

_FLUSH_S: Final = 0.2
_FLUSH_CHARACTERS: Final = 2**16


class Sink(Protocol):
    """Takes text; what it was given it writes whole, or raises `OSError`."""

    def write(self, text: str) -> None:
        """All of it."""


class Stream:
    """Standard output."""

    def __init__(self, stream: TextIO, before: Callable[[], None] | None = None) -> None:
        self._stream = stream
        self._before = before

    def write(self, text: str) -> None:
        """All of it, at once; `before` clears the line."""
        if self._before is not None:
            self._before()
        encoding = self._stream.encoding or "utf-8"
        self._stream.write(text.encode(encoding, errors="backslashreplace").decode(encoding))
        self._stream.flush()

    def close(self) -> None:
        """Nothing: the stream is not ours."""


class File:
    """A file, UTF-8, written over from its start."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        self._whole = 0

    def write(self, text: str) -> None:
        """In one go, so that even a killed process leaves no half record."""
        encoded = text.encode("utf-8", errors="backslashreplace")
        data = memoryview(encoded)
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError:
            # A full disk: back to the last whole record. What is no file cannot be cut.
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._whole)
            raise
        self._whole += len(encoded)

    def close(self) -> None:
        """Where the disk says what it kept to itself so far."""
        os.close(self._file)


@dataclass
class Records:
    """Records on their way out, a few at a time: each is written whole or, where that fails, told."""

    format: Format
    sink: Sink
    interrupts: "Interrupts"

    def __post_init__(self) -> None:
        self._pending = [self.format.head()]
        self._length = 0
        self._flushed = time.monotonic()

    def add(self, name: str, result: ImageResult) -> None:
        """One image's."""
        text = self.format.record(name, result)
        self._pending.append(text)
        self._length += len(text)
        if self._length >= _FLUSH_CHARACTERS or time.monotonic() >= self._flushed + _FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Writes what there is; an interrupt waits for its end."""
        with self.interrupts.held():
            text = "".join(self._pending)
            self._pending.clear()
            self._length = 0
            if text:
                self.sink.write(text)
            self._flushed = time.monotonic()

    def finish(self) -> None:
        """Writes what was held back, too."""
        self._pending.append(self.format.rest())
        self.flush()


class Interrupts:
    """Ctrl-C: a `KeyboardInterrupt`, but not while something is held."""

    def __init__(self) -> None:
        self._holds = 0
        self._came = False
        self._before: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Inside, an interrupt waits."""
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1
            if self._came and not self._holds:
                self._came = False
                raise KeyboardInterrupt

    def _handle(self, _: int, __: FrameType | None) -> None:
        if self._holds:
            self._came = True
        else:
            raise KeyboardInterrupt
