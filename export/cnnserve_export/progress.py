"""What a person sees while an export runs: one line per stage, with its time and its findings."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

_CLEAR_LINE = "\r\x1b[K"


class Progress:
    """Writes stages to a stream; on a terminal the running stage is shown and rewritten in place."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live = stream.isatty()

    @contextmanager
    def stage(self, name: str) -> Iterator["Stage"]:
        """Times one stage and prints its line at the end; a stage that raises leaves no line."""
        stage = Stage(self, name)
        stage.update("…")
        began = time.perf_counter()
        try:
            yield stage
        finally:
            self._write("", end="")
        self._write(f"{name:<9}{time.perf_counter() - began:6.1f} s  {stage.finding}".rstrip())

    def show(self, text: str) -> None:
        """Replaces the running stage's line; nothing where the stream is no terminal."""
        if self._live:
            self._write(text, end="")

    def _write(self, text: str, end: str = "\n") -> None:
        self._stream.write((_CLEAR_LINE if self._live else "") + text + end)
        self._stream.flush()


class Stage:
    """One running stage: `finding` is what its line will say."""

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress = progress
        self._name = name
        self.finding = ""

    def update(self, text: str) -> None:
        """Shows how far the stage is."""
        self._progress.show(f"{self._name:<9}{text}")
