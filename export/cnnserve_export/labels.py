"""Class names in: a UTF-8 text file, one name per line, in the order of the network's outputs."""

import re
from collections.abc import Sequence
from pathlib import Path

from cnnserve_export import files
from cnnserve_export.errors import ExportError

LABELS_FILE = "labels.txt"
_MARK = "\ufeff"
_UNIVERSAL = re.compile("\r\n?")


def read(path: Path, class_count: int, fix: str = "") -> tuple[str, ...]:
    """The names in `path`; byte-order marks, any line ends and empty last lines are forgiven.

    Two classes may share a name, as ImageNet's two cranes do. Raises `ExportError` naming the line, or both counts
    where they differ and `fix`, by default --num-classes.
    """
    try:
        text = _UNIVERSAL.sub("\n", files.read(path, f"the labels {path}").decode())
    except UnicodeDecodeError as error:
        raise ExportError(f"the labels {path} are not UTF-8 (byte {error.start}); save the file as UTF-8") from error
    # Not only at the start: files put together by `cat` have a mark where the second one began.
    lines = [line.strip().strip(_MARK).strip() for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    _check(lines, path.name, class_count, fix)
    return tuple(lines)


def render(names: Sequence[str]) -> str:
    """The text of the label file a version carries: one name per line, each ended by a newline."""
    return "".join(f"{name}\n" for name in names)


def _check(names: Sequence[str], file: str, class_count: int, fix: str) -> None:
    if not names:
        raise ExportError(f"{file} is empty; it needs {class_count} names, one per line")
    for number, name in enumerate(names, start=1):
        if not name:
            raise ExportError(f"{file} line {number} is empty; every class needs a name")
        # What every second byte of UTF-16 reads as.
        if "\0" in name:
            raise ExportError(f"{file} line {number} holds a NUL character; save the file as UTF-8")
        # Readers disagree on form feeds, U+2028 and the like: one name would become two, and all after it move.
        if len(name.splitlines()) != 1:
            raise ExportError(f"{file} line {number} holds a line break other than LF and CR: {name[:40]!r}")
    if len(names) != class_count:
        # No classifier has one class.
        fix = fix or "correct the file" + (f" or pass --num-classes {len(names)}" if len(names) > 1 else "")
        count = "1 label" if len(names) == 1 else f"{len(names)} labels"
        raise ExportError(f"{file} has {count}, the network has {class_count} classes; {fix}")
