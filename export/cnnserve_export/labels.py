"""Reads and writes label files: UTF-8 text with one label a line, in the order of the network's outputs."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from cnnserve.repository import label_file
from cnnserve_export import files
from cnnserve_export.errors import ExportError

LABELS_FILE = "labels.txt"
# The 1,000 ImageNet labels of torchvision 0.28 (`torchvision.models._meta._IMAGENET_CATEGORIES`).
IMAGENET_FILE = Path(__file__).with_name("imagenet_labels.txt")
_MARK = "\ufeff"
_UNIVERSAL = re.compile("\r\n?")


def read(path: Path, class_count: int, fix: str = "", *, allow_empty: bool = False) -> tuple[str, ...]:
    """Returns the `class_count` labels in the file `path`.

    Byte-order marks, any kind of line end, spaces around labels and empty last lines are accepted and removed. Two
    classes may have the same label, as the two cranes of ImageNet do. A `.json` file is TorchServe's
    `index_to_name.json`, a `config.json` of Hugging Face with `id2label`, or a list.
    With `allow_empty`, labels may also be empty, all the same, or hold control characters.
    Raises `ExportError` if the file cannot be read or is not UTF-8, if a line holds no label (the error names the
    line), and if the number of labels is wrong. That error names both numbers and `fix`, which says what to do; if
    `fix` is empty, the error proposes --num-classes.
    """
    try:
        text = files.read(path, f"the label file {path}").decode()
    except UnicodeDecodeError as error:
        raise ExportError(
            f"the label file {path} is not UTF-8 at byte {error.start}; save the file as UTF-8"
        ) from error
    lines = _of_json(text, path.name) if path.suffix.lower() == ".json" else _lines(text)
    while lines and not lines[-1] and not (allow_empty and len(lines) <= class_count):
        lines.pop()
    _check_lines(lines, path.name, class_count, allow_empty=allow_empty)
    if len(lines) != class_count:
        raise ExportError(_wrong_count(path, len(lines), class_count, fix))
    if not allow_empty and (doubt := label_file.doubt(lines)):
        raise ExportError(f"{path.name}: {doubt}; correct the labels, or publish them with --allow-empty-labels")
    return tuple(lines)


def render(names: Sequence[str]) -> str:
    """Returns the text of a version's label file: one label a line, each with a newline at its end."""
    return "".join(f"{name}\n" for name in names)


def _lines(text: str) -> list[str]:
    # `cat` leaves a mark at the start of every file that it joins, so marks occur in the middle too.
    return [line.strip().strip(_MARK).strip() for line in _UNIVERSAL.sub("\n", text).split("\n")]


def _of_json(text: str, file: str) -> list[str]:
    """Returns the labels in a JSON file, in the order of their classes."""
    try:
        raw = json.loads(text.removeprefix(_MARK))
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{file} is not JSON: {error}") from error
    if isinstance(raw, dict):
        numbered = raw.get("id2label", raw)
        if not isinstance(numbered, dict) or {*numbered} != {str(number) for number in range(len(numbered))}:
            raise ExportError(
                f"{file} does not have a label for each class from 0 on; give TorchServe's index_to_name.json, a "
                "config.json of Hugging Face with id2label, or text with one label a line"
            )
        raw = [numbered[str(number)] for number in range(len(numbered))]
    # In TorchServe's example, a class has the number of its WordNet entry and its name.
    names = [item[-1] if isinstance(item, list) and item else item for item in raw] if isinstance(raw, list) else [raw]
    if not all(isinstance(name, str) for name in names):
        raise ExportError(f"{file} holds labels that are no texts; correct the file")
    return [name.strip() for name in names]


def _check_lines(lines: Sequence[str], file: str, class_count: int, *, allow_empty: bool) -> None:
    if not lines:
        raise ExportError(f"{file} is empty; write {class_count} labels into it, one a line")
    for number, label in enumerate(lines, start=1):
        if not label and not allow_empty:
            raise ExportError(
                f"{file} line {number} is empty; give every class a label, or publish empty labels with "
                "--allow-empty-labels"
            )
        # UTF-16 that is read as UTF-8 has a NUL in every second place.
        if "\0" in label:
            raise ExportError(f"{file} line {number} holds a NUL character; save the file as UTF-8")
        # Some readers end a line at a form feed or at U+2028. They would read two labels here and shift all after it.
        if len(label.splitlines()) > 1:
            raise ExportError(
                f"{file} line {number} holds a line break other than LF and CR: {label[:40]!r}; remove the line break"
            )


def _wrong_count(path: Path, found: int, class_count: int, fix: str) -> str:
    if path == IMAGENET_FILE:
        name, fix = "the built-in list of ImageNet labels", f"give the network's {class_count} labels as --labels FILE"
    else:
        # A classifier has at least two classes, so --num-classes 1 would be no help.
        name, fix = path.name, fix or "correct the file" + (f" or pass --num-classes {found}" if found > 1 else "")
    count = "1 label" if found == 1 else f"{found} labels"
    return f"{name} has {count}, the network has {class_count} classes; {fix}"
