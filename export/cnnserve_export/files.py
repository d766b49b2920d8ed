"""Reads files that a command names, but no pipes and devices, which may never end."""

import stat
from pathlib import Path

from cnnserve_export.errors import ExportError


def read(path: Path, name: str) -> bytes:
    """Returns the bytes of the regular file `path`. Raises `ExportError`, which calls the file `name`."""
    check_plain(path, name)
    try:
        return path.read_bytes()
    except OSError as error:
        raise ExportError(f"{name} cannot be read: {error.strerror}") from error


def check_plain(path: Path, name: str) -> None:
    """Raises `ExportError` if `path` is a pipe, a device or a socket: reading could take forever."""
    try:
        mode = path.stat().st_mode
    except OSError:
        # The code that opens the file reports what is wrong.
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ExportError(f"{name} cannot be read: it is not a regular file; write its content into one and give that")
