"""Reads the labels of a model's classes: a UTF-8 file with one label per line, in the order of the output's values."""

from pathlib import Path

from cnnserve.errors import ModelLoadFailed, reason


def read_labels(file: Path) -> tuple[str, ...]:
    """Returns the labels of a file, one per line. Raises `ModelLoadFailed` if the file is missing or unreadable.

    Line ends may be CRLF. A byte-order mark and an empty last line are ignored.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ModelLoadFailed(f"label file {file.name} is missing; add it or remove label_filename") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ModelLoadFailed(f"label file {file.name} cannot be read: {reason(error)}") from error
    # splitlines() would also split at form feeds and Unicode line separators, which labels may have.
    lines = text.split("\n")
    return tuple(lines[:-1] if lines[-1] == "" else lines)
