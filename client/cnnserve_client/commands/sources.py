"""Finds and reads the images that paths, folders, patterns and lists of paths name, one at a time."""

import codecs
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cnnserve_client.errors import InvalidInputError

STANDARD_INPUT: Final = "-"
SUFFIXES: Final = (
    *(".jpg", ".jpeg", ".jfif", ".jpe", ".pjpeg", ".pjp"),
    *(".png", ".apng", ".webp", ".bmp", ".dib", ".gif"),
)

_NOT_REGULAR: Final = "not a regular file; to read an image from a pipe, use -, and to read a list, use --files-from -"
_MAGIC: Final = frozenset("*?[")


@dataclass(frozen=True)
class Entry:
    """The path of an image, `-` for standard input, or a name with the error that belongs to it."""

    name: str
    error: InvalidInputError | None = None


def find(arguments: Iterable[str]) -> Iterator[Entry]:
    """Yields the images that a command line names, in its order.

    A folder gives the files in it and in its subfolders whose names end in one of `SUFFIXES`, sorted by name, without
    hidden ones. Links to folders are not followed, because they may form a cycle. A pattern that the shell has not
    expanded is expanded here. An argument that leads to no image gives one entry with the error.
    """
    for argument in arguments:
        if argument == STANDARD_INPUT:
            yield Entry(argument)
        elif _MAGIC.isdisjoint(argument) or os.path.lexists(argument):
            yield from _at(argument)
        else:
            yield from _matching(argument)


def listed(file: str) -> Iterator[Entry]:
    """Yields the images that a list names: a text file, or standard input if `file` is `-`, with one path on each line.

    The paths may be files or folders, but not patterns.

    Raises:
        InvalidInputError: the file cannot be read.
    """
    try:
        with open(0 if file == STANDARD_INPUT else file, "rb", closefd=file != STANDARD_INPUT) as lines:
            for number, line in enumerate(lines):
                if number == 0 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                    raise ValueError("it is UTF-16, as > of Windows PowerShell writes it; save it as UTF-8")
                # Editors of Windows begin a text with a byte-order mark.
                bare = line.removeprefix(codecs.BOM_UTF8) if number == 0 else line
                if path := os.fsdecode(bare.rstrip(b"\r\n")):
                    yield from _at(path)
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{file}: cannot read the list of images: {_reason(error)}") from error


def read(entry: Entry, limit: int, read_file: Callable[[str, int], bytes]) -> bytes:
    """Returns the bytes of an entry. Raises `InvalidInputError` if it cannot be read or has more than `limit` bytes."""
    if entry.error is not None:
        raise entry.error
    try:
        data = sys.stdin.buffer.read(limit + 1) if entry.name == STANDARD_INPUT else read_file(entry.name, limit)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise InvalidInputError(_reason(error)) from error
    if len(data) > limit:
        raise InvalidInputError(f"larger than the {limit} bytes that one request may hold: use a smaller image")
    return data


def _at(path: str) -> Iterator[Entry]:
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 - takes half the time of Path.stat
    except (OSError, ValueError) as error:
        yield Entry(path, InvalidInputError(_reason(error)))
        return
    if not stat.S_ISDIR(mode):
        # Reading a pipe to which nobody writes would never end.
        yield Entry(path, None if stat.S_ISREG(mode) else InvalidInputError(_NOT_REGULAR))
        return
    count = 0
    for entry in _below(path):
        count += 1
        yield entry
    if not count:
        kinds = ", ".join(suffix[1:] for suffix in SUFFIXES)
        yield Entry(path, InvalidInputError(f"the folder has no images ({kinds})"))


def _below(folder: str) -> Iterator[Entry]:
    names: list[tuple[str, bool]] = []
    try:
        with os.scandir(folder) as found:
            for item in found:
                is_folder = item.is_dir(follow_symlinks=False)
                if not item.name.startswith(".") and (is_folder or _is_image(item)):
                    names.append((item.name, is_folder))
    except OSError as error:
        yield Entry(folder, InvalidInputError(_reason(error)))
        return
    names.sort()
    for name, is_folder in names:
        path = os.path.join(folder, name)  # noqa: PTH118 - keeps ./ and // as given
        if is_folder:
            yield from _below(path)
        else:
            yield Entry(path)


def _is_image(item: "os.DirEntry[str]") -> bool:
    if not item.name.lower().endswith(SUFFIXES):
        return False
    # Reading reports a link whose target is missing. A pipe is no image, because reading one might never end.
    try:
        return item.is_file() or (item.is_symlink() and not os.path.exists(item.path))  # noqa: PTH110 - as above
    except OSError:
        return True


def _matching(pattern: str) -> Iterator[Entry]:
    recursive = "**" in Path(pattern).parts
    whole = Path(pattern, "*") if pattern.endswith("**") else Path(pattern)
    root = Path(whole.anchor or ".")
    try:
        found = sorted(
            str(path) for path in root.glob(str(whole.relative_to(whole.anchor))) if not _hidden(path, whole)
        )
    except (OSError, ValueError) as error:
        yield Entry(pattern, InvalidInputError(_reason(error)))
        return
    count = 0
    for path in found:
        # ** itself matches the files in the folders that it matches.
        if not (recursive and Path(path).is_dir()):
            count += 1
            yield from _at(path)
    if not count:
        yield Entry(pattern, InvalidInputError("no file matches this pattern"))


def _hidden(path: Path, pattern: Path) -> bool:
    def dots(parts: Iterable[str]) -> int:
        return sum(part.startswith(".") and part != ".." for part in parts)

    return dots(path.parts) > dots(pattern.parts)


def _reason(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or str(error)
