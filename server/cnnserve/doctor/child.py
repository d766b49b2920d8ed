"""Checks that load native libraries, in a process of their own: `python -m cnnserve.doctor.child TASK ARGUMENTS FD`.

A broken library may end its process, and a model may never finish loading. `cnnserve doctor` outlasts both. The child
writes one JSON object per line to the file descriptor.
"""

import json
import logging
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

Event = dict[str, Any]
Tell = Callable[[Event], object]
_LINE_BYTES = 65536


class ChildFailed(Exception):
    """The process ended early, or took too long. The text says how."""


def run(task: str, arguments: Mapping[str, Any], limit_s: Callable[[Event | None], float]) -> Iterator[Event]:
    """Runs a task of `tasks.py` and yields what it tells. Raises `ChildFailed`.

    `limit_s` returns how long the next event may take, in s, by the event before it (None: it is the first).
    """
    reading, writing = os.pipe()
    with tempfile.TemporaryFile() as errors:
        # -P: the current folder is no place to import from.
        command = [sys.executable, "-P", "-m", __name__, task, json.dumps(arguments), str(writing)]
        process = subprocess.Popen(command, stdout=errors, stderr=errors, pass_fds=[writing])  # noqa: S603
        os.close(writing)
        try:
            yield from _events(reading, limit_s)
            if process.wait() != 0:
                raise ChildFailed(_ending(process.returncode, errors))
        finally:
            os.close(reading)
            process.kill()
            process.wait()


def _events(descriptor: int, limit_s: Callable[[Event | None], float]) -> Iterator[Event]:
    rest, event = b"", None
    end = time.monotonic() + limit_s(None)
    while True:
        readable, _, _ = select.select([descriptor], [], [], max(0.0, end - time.monotonic()))
        if not readable:
            raise ChildFailed(f"it did not end within {limit_s(event):g} s")
        data = os.read(descriptor, _LINE_BYTES)
        if not data:
            return
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            event = json.loads(line)
            yield event
            end = time.monotonic() + limit_s(event)


def _ending(status: int, errors: BinaryIO) -> str:
    errors.seek(0)
    lines = errors.read().decode(errors="replace").strip().splitlines()
    how = f"signal {-status}" if status < 0 else f"status {status}"
    return f"it ended with {how}" + (f": {lines[-1]}" if lines else "")


def main(task: str, arguments: str, descriptor: str) -> None:
    """Runs one task."""
    from cnnserve.doctor import tasks  # noqa: PLC0415  (it imports ONNX Runtime, which may end the process)

    logging.disable(logging.CRITICAL)
    with open(int(descriptor), "w", buffering=1, encoding="utf-8") as out:  # noqa: PTH123  (a descriptor, not a path)
        tasks.TASKS[task](lambda event: out.write(json.dumps(event) + "\n"), **json.loads(arguments))
        out.flush()
        # Threads of native libraries must not hold up the exit.
        os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
