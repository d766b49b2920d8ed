"""Files that a command names: read whole, and only where they end."""

import stat
from pathlib import Path

from cnnserve_export.errors import ExportError


def read(path: Path, name: str) -> bytes:
    """The bytes of the plain file at `path`, which errors call `name`. Raises `ExportError`."""
    check_plain(path, name)
    try:
        return path.read_bytes()
    except OSError as error:
        raise ExportError(f"{name} cannot be read: {error.strerror}") from error


def check_plain(path: Path, name: str) -> None:
    """Raises `ExportError` for a device, which may never end, and for a pipe, which may never begin."""
    try:
        mode = path.stat().st_mode
    except OSError:
        # Whoever opens it learns what is wrong.
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ExportError(f"{name} cannot be read: it is no plain file; write its contents to one and name that")
