"""The limits of what a pull writes: bytes, number of files, names."""

import hashlib
import os
import re
from pathlib import Path
from typing import Protocol

from cnnserve.sources.errors import SourceError

GIB = 1 << 30
DEFAULT_GIB = 16
# A version has about 20 files.
MOST_FILES = 10_000
CHUNK = 1 << 20
# MODEL/VERSION/FILE, and one folder more, as in MODEL/configs/FILE.
_DEEPEST = 4
# No leading dot: that rules out "." and "..", and hidden files, which nothing reads.
_PART = re.compile(r"[^./\\\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]*")
# That of Linux' file systems.
_LONGEST_NAME = 255


class Reads(Protocol):
    """What bytes are read from."""

    def read(self, size: int, /) -> bytes:
        """Returns the next bytes, at most `size`; none at the end."""


class Room:
    """What one pull may still write. `limit`: bytes in all."""

    def __init__(self, limit: int = DEFAULT_GIB * GIB, files: int = MOST_FILES) -> None:
        self._limit = limit
        self._left = limit
        self._most_files = files
        self._files = 0

    def announce(self, size: int) -> None:
        """Raises `SourceError` if `size` bytes, of which nothing has come yet, are too many."""
        if size > self._left:
            raise SourceError(
                f"the source announces {size} bytes, the limit is {self._limit}; if that is right, raise --max-size"
            )

    def again(self) -> "Room":
        """Returns as much room, for a copy of the same content in another form."""
        return Room(self._limit, self._most_files)

    def take(self, size: int, name: str) -> None:
        """Counts bytes. Raises `SourceError` if there are too many."""
        self._left -= size
        if self._left < 0:
            raise SourceError(
                f"the source has more than {self._limit} bytes, the limit (at {name}); if that is right, raise "
                "--max-size"
            )

    def add(self, name: str) -> None:
        """Counts one file or folder. Raises `SourceError` if there are too many."""
        self._files += 1
        if self._files > self._most_files:
            raise SourceError(
                f"the source has more than {self._most_files} files, the limit (at {name}); pull one model or version"
            )


def make_folder(path: Path) -> None:
    """Makes a folder, and those above it. Raises `SourceError` if one of them is a file."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise _twice(path) from error


def check_path(path: str) -> str:
    """Returns a relative path that files may have. Raises `SourceError` with what is wrong."""
    parts = path.split("/")
    if len(parts) > _DEEPEST or not all(map(_is_name, parts)):
        raise SourceError(
            f"the source has a file with the path {path[:200]!r}, expected a relative path such as MODEL/VERSION/FILE "
            f"of at most {_DEEPEST} names of at most {_LONGEST_NAME} bytes, none of which begins with a dot; make the "
            "pack with cnnserve pack"
        )
    return path


def _is_name(part: str) -> bool:
    try:
        return _PART.fullmatch(part) is not None and len(os.fsencode(part)) <= _LONGEST_NAME
    except UnicodeEncodeError:
        # JSON has halves of characters.
        return False


def write(
    source: Reads, path: Path, room: Room, *, size: int | None = None, sha256: str = "", counted: bool = False
) -> str:
    """Writes all that `source` returns into a new file, and returns the SHA-256 in hexadecimal digits.

    `size`, `sha256`: those that are expected; None and "": any. `counted`: `source` counts its bytes itself. Raises
    `SourceError` if there is another number of bytes or another digest, and `OSError` if the disk cannot be written.
    """
    room.add(path.name)
    digest = hashlib.sha256()
    written = 0
    with os.fdopen(_new_file(path), "wb") as file:
        while chunk := source.read(CHUNK):
            written += len(chunk)
            if size is not None and written > size:
                raise SourceError(f"{path.name} has more than the {size} bytes that were announced; make the pack anew")
            if not counted:
                room.take(len(chunk), path.name)
            digest.update(chunk)
            file.write(chunk)
    if size is not None and written < size:
        raise SourceError(
            f"{path.name} ended after {written} of {size} bytes: the transfer broke off, or the source is damaged; "
            "try again, then make the pack anew"
        )
    found = digest.hexdigest()
    if sha256 and found != sha256:
        raise SourceError(
            f"{path.name} is damaged or was changed: SHA-256 {found[:12]}…, expected {sha256[:12]}…; try again, then "
            "make the pack anew"
        )
    return found


def _new_file(path: Path) -> int:
    make_folder(path.parent)
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    except FileExistsError as error:
        raise _twice(path) from error


def _twice(path: Path) -> SourceError:
    return SourceError(f"the source has {path.name!r} twice; make the pack anew with cnnserve pack")
