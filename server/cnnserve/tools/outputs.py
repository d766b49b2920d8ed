"""The files that tools write at their end."""

import os
from pathlib import Path

from cnnserve_client.errors import InvalidInputError


def check(path: Path | None, flag: str) -> None:
    """Raises `InvalidInputError` if the file of a flag cannot be written, before the work whose result it gets."""
    if path is None:
        return
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InvalidInputError(f"{flag} {path}: this file cannot be written; name another one")
