"""Reads files again when they change, so that a new certificate or tokens file needs no restart."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from cnnserve.access.lists import AccessError

_log = logging.getLogger(__name__)
_LOOK_S = 1.0
# Modification time, size and inode: Kubernetes replaces files by a symbolic link to another folder.
_State = tuple[tuple[int, int, int] | None, ...]


class Followed:
    """Files that belong together, or a folder of them, and what reads them.

    `read` takes effect itself; it raises `AccessError` if not.
    """

    def __init__(self, what: str, paths: Sequence[Path], read: Callable[[], object]) -> None:
        self._what = what
        self._paths = tuple(paths)
        self._read = read
        # Before the first read: a change after it is seen at the first look.
        self._read_state = self._seen = self._state()
        read()

    def look(self) -> None:
        """Reads the files again if they have changed, and not since the last look: they may be half written."""
        state = self._state()
        if state != self._seen:
            self._seen = state
        elif state != self._read_state:
            self.reload()

    def reload(self) -> None:
        """Reads the files again. If one of them is broken, logs that, and what was read before stays in force."""
        self._read_state = self._seen = self._state()
        try:
            self._read()
        except AccessError as error:
            _log.error("%s changed and cannot be used, so the old ones stay in force: %s", self._what, error)
        else:
            _log.info("%s read again: %s", self._what, ", ".join(map(str, self._paths)))

    def _state(self) -> _State:
        return tuple(_stat(path) for given in self._paths for path in (given, *_inside(given)))


async def follow(
    files: Sequence[Followed],
    reread: asyncio.Event | None = None,
    *,
    also: Callable[[], object] | None = None,
    interval_s: float = _LOOK_S,
) -> None:
    """Looks at the files, and calls `also`, until it is cancelled. If `reread` is set, reads the files at once."""
    reread = reread or asyncio.Event()
    while files:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(reread.wait(), interval_s)
        for followed in files:
            if reread.is_set():
                followed.reload()
            else:
                followed.look()
        reread.clear()
        if also is not None:
            also()


def _inside(path: Path) -> list[Path]:
    """Returns what is in a folder, and nothing for a file."""
    try:
        return sorted(path.iterdir())
    except OSError:
        return []


def _stat(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
