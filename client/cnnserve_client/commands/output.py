"""Writes records to standard output or a file. Each record is written whole, even after Ctrl-C or on a full disk."""

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
    """Writes text as a whole, or raises `OSError`."""

    def write(self, text: str) -> None:
        """Writes all of `text`."""


class Stream:
    """Writes to standard output. `before` is called before each write, for example to clear the progress bar."""

    def __init__(self, stream: TextIO, before: Callable[[], None] | None = None) -> None:
        self._stream = stream
        self._before = before

    def write(self, text: str) -> None:
        """Writes and flushes all of `text`. Characters that the stream cannot encode are escaped."""
        if self._before is not None:
            self._before()
        encoding = self._stream.encoding or "utf-8"
        self._stream.write(text.encode(encoding, errors="backslashreplace").decode(encoding))
        self._stream.flush()

    def close(self) -> None:
        """Does nothing, because others still use the stream."""


class File:
    """Writes a file in UTF-8. The contents of an existing file are replaced."""

    def __init__(self, path: str) -> None:
        # On Windows, files are opened as text otherwise, and each line would end in another way.
        binary: int = getattr(os, "O_BINARY", 0)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | binary, 0o666)
        self._whole = 0

    def write(self, text: str) -> None:
        """Writes `text` with one system call if possible, so that even a killed process leaves no part of a record."""
        encoded = text.encode("utf-8", errors="backslashreplace")
        data = memoryview(encoded)
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError:
            # If the disk is full, cut the file after its last whole record. A device cannot be cut.
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._whole)
            raise
        self._whole += len(encoded)

    def close(self) -> None:
        """Closes the file. Raises `OSError` if the disk reports an error of an earlier write only now."""
        os.close(self._file)


@dataclass
class Records:
    """Collects records and writes several at a time. A record is written whole, or an `OSError` is raised."""

    format: Format
    sink: Sink
    interrupts: "Interrupts"

    def __post_init__(self) -> None:
        self._pending = [self.format.head()]
        self._length = 0
        self._flushed = time.monotonic()

    def add(self, name: str, result: ImageResult) -> None:
        """Adds the record of one image."""
        text = self.format.record(name, result)
        self._pending.append(text)
        self._length += len(text)
        if self._length >= _FLUSH_CHARACTERS or time.monotonic() >= self._flushed + _FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Writes all records that were added. Ctrl-C takes effect after the write."""
        with self.interrupts.held():
            text = "".join(self._pending)
            self._pending.clear()
            self._length = 0
            if text:
                self.sink.write(text)
            self._flushed = time.monotonic()

    def finish(self) -> None:
        """Writes all records, also those that the format held back."""
        self._pending.append(self.format.rest())
        self.flush()


class Interrupts:
    """Turns Ctrl-C into `KeyboardInterrupt`, but not inside `held`."""

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
        """Delays a `KeyboardInterrupt` until the end of this context."""
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
