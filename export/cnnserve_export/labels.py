"""Class names in: a UTF-8 text file, one name per line, in the order of the network's outputs."""

from collections.abc import Sequence
from pathlib import Path

from cnnserve_export.errors import ExportError

LABELS_FILE = "labels.txt"


def read(path: Path, class_count: int, fix: str = "") -> tuple[str, ...]:
    """The names in `path`; a byte-order mark, any line ends and empty last lines are forgiven.

    Raises `ExportError` naming the line, or both counts where they differ and `fix`, by default --num-classes.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ExportError(f"the labels {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ExportError(f"the labels {path} are not UTF-8 (byte {error.start}); save the file as UTF-8") from error
    names = [line.strip() for line in text.rstrip().split("\n")] if text.strip() else []
    _check(names, path.name, class_count, fix)
    return tuple(names)


def render(names: Sequence[str]) -> str:
    """The text of the label file a version carries: one name per line, each ended by a newline."""
    return "".join(f"{name}\n" for name in names)


def _check(names: Sequence[str], file: str, class_count: int, fix: str) -> None:
    for number, name in enumerate(names, start=1):
        if not name:
            raise ExportError(f"{file} line {number} is empty; every class needs a name")
        # Readers disagree on form feeds, U+2028 and the like: one name would become two, and all after it move.
        if len(name.splitlines()) != 1:
            raise ExportError(f"{file} line {number} holds a line break other than LF and CR: {name[:40]!r}")
    if len(names) != class_count:
        fix = fix or f"correct the file or pass --num-classes {len(names)}"
        raise ExportError(f"{file} has {len(names)} labels, the network has {class_count} classes; {fix}")
