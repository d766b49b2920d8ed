"""Reads the labels of a model's classes: a UTF-8 file with one label per line, in the order of the output's values."""

import re
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

from cnnserve.errors import ModelLoadFailed, reason

# C0, DEL and C1, and the characters that change the direction of the text after them. Scripts that are written from
# right to left need none of these.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def read_labels(name: str, read: Callable[[str], bytes]) -> tuple[str, ...]:
    """Returns the labels in the file `name`, one per line. `read` returns its content.

    Raises `ModelLoadFailed` if the file is missing or unreadable. Line ends may be CRLF. A byte-order mark and an empty
    last line are ignored.
    """
    file = PurePosixPath(name).name
    try:
        text = read(name).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise ModelLoadFailed(f"label file {file} is missing; add it or remove label_filename") from error
    except UnicodeDecodeError as error:
        raise ModelLoadFailed(f"label file {file} cannot be read: {reason(error)}") from error
    # splitlines() would also split at form feeds and Unicode line separators, which labels may have.
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return tuple(lines[:-1] if lines[-1] == "" else lines)


def doubt(labels: Sequence[str]) -> str:
    """Returns why these can hardly be the labels of classes, or "" if they may be."""
    if labels and not any(label.strip() for label in labels):
        return f"all {len(labels)} labels are empty"
    if len(labels) > 1 and len({*labels}) == 1:
        return f"all {len(labels)} labels are {labels[0][:80]!r}"
    for number, label in enumerate(labels, start=1):
        if match := _CONTROL.search(label):
            return f"label {number} ({label[:80]!r}) contains the control character U+{ord(match[0]):04X}"
    return ""
