"""A server's processes: started as one, found as a tree, ended together."""

import contextlib
import ctypes
import os
import re
import select
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import machine

_STOP_S = 20.0
_COLOUR = re.compile(r"\x1b\[[\d;]*m")
# Characters of a line of a log that are shown.
_LINE = 200
_PR_SET_CHILD_SUBREAPER = 36
_LIBC = ctypes.CDLL(None)


class NotRun(Exception):
    """A server could not be measured. The text says why."""


class Started:
    """A server that was started at `began` (`time.perf_counter`), with all the processes that it has started."""

    def __init__(self, process: "subprocess.Popen[bytes]", began: float, log: IO[bytes]) -> None:
        self._process = process
        self._log = log
        self.began = began

    @property
    def is_alive(self) -> bool:
        """Whether the process that was started still runs."""
        return self._process.poll() is None

    @property
    def pids(self) -> tuple[int, ...]:
        """The IDs of all processes of the server."""
        return tree(self._process.pid)

    def memory_mib(self) -> float:
        """Returns the memory of all processes; of what they share, each process has its share (PSS)."""
        total = 0.0
        for pid in self.pids:
            with contextlib.suppress(OSError):
                total += machine.memory_mib(pid)
        return total

    def last_words(self) -> str:
        """Returns the last lines of what the server wrote."""
        lines = _COLOUR.sub("", Path(self._log.name).read_text(errors="replace")).strip().splitlines()
        return " / ".join(line.strip()[:_LINE] for line in lines[-3:]) or "it wrote nothing"


@contextlib.contextmanager
def started(command: Sequence[str], environment: Mapping[str, str]) -> Iterator[Started]:
    """Starts a server, and ends all of its processes: with SIGTERM, and those that stay with SIGKILL."""
    with tempfile.NamedTemporaryFile(prefix="cnnserve-peer-") as log, tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            env=environment,
            cwd=folder,
            preexec_fn=_adopt_descendants,  # noqa: PLW1509 - one call of the C library, which takes no lock
        )
        server = Started(process, began, log)
        try:
            yield server
        finally:
            _end(process)


def tree(root: int) -> tuple[int, ...]:
    """Returns the IDs of a process and of all its descendants."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found = [root] if root in parents else []
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return tuple(found)


def free_port() -> int:
    """Returns a port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def is_loopback_only() -> bool:
    """Returns whether loopback is the only network interface here."""
    return [name for _, name in socket.if_nameindex()] == ["lo"]


def _adopt_descendants() -> None:
    """Makes this process the parent of descendants whose parents end, so that they are found in its tree."""
    _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _end(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.ExitStack() as stack:
        handles = []
        # A handle stays that of one process, an ID does not.
        for pid in tree(process.pid):
            with contextlib.suppress(ProcessLookupError):
                handles.append(os.pidfd_open(pid))
                stack.callback(os.close, handles[-1])
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_S)
        for handle in handles:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        process.wait()
        for handle in handles:
            # It can be read when its process has ended.
            select.select([handle], [], [], _STOP_S)
