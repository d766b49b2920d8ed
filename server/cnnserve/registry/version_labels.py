"""How a request says which version it wants: a number, or a word of the model's `version_labels.json`.

    {"stable": 3, "canary": 4}

The file is read off the event loop whenever it changes, never for a request.
"""

import logging
import re
from pathlib import Path

from cnnserve import json_text
from cnnserve.errors import VersionNotFound
from cnnserve.registry.lifecycle import ModelEntry, VersionLabels
from cnnserve.repository.folders import LABELS_FILE, version_number

_log = logging.getLogger(__name__)

# A letter first: no label can be taken for a number.
_LABEL = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,127}")


def resolve(entry: ModelEntry, text: str) -> int:
    """The version that a request's `text` names. Raises `VersionNotFound`, which names what there is."""
    number = version_number(text)
    said = f"version {text}"
    if number is None and (number := entry.labels.versions.get(text)) is not None:
        said = f"version {number}, which the label '{text}' names"
    if number is not None and number in entry.versions:
        return number
    known = ", ".join(map(str, entry.versions)) or "none"
    labels = ", ".join(entry.labels.versions) or "none"
    if number is None:
        said = f"version {text[:80]!r}, which is neither a version's number nor a label"
    raise VersionNotFound(f"model '{entry.name}' has no {said}; it has {known} (labels: {labels})")


def read_labels(folder: Path, before: VersionLabels) -> VersionLabels:
    """The labels in a model's folder. Blocks. A file that is broken is logged once and changes nothing."""
    path = folder / LABELS_FILE
    try:
        stat = path.stat()
    except FileNotFoundError:
        return VersionLabels()
    except OSError:
        return before
    signature = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
    if signature == before.signature:
        return before
    try:
        return VersionLabels(parse_labels(path.read_text(encoding="utf-8")), signature)
    except (OSError, ValueError) as error:
        _log.error("model %s: %s is ignored: %s", folder.name, LABELS_FILE, error)
        return VersionLabels(before.versions, signature)


def parse_labels(text: str) -> dict[str, int]:
    """Labels by word, sorted. Raises `ValueError` saying what is wrong."""
    raw = json_text.loads(text)
    if not isinstance(raw, dict):
        raise ValueError(f'it holds a {type(raw).__name__}, expected an object such as {{"stable": 3}}')
    labels = {}
    for word, value in sorted(raw.items()):
        number = None if isinstance(value, bool | float) else version_number(str(value))
        if not _LABEL.fullmatch(word):
            raise ValueError(f"the label {word!r} is not a word: a letter, then letters, digits, dot, dash, underscore")
        if number is None:
            raise ValueError(f"the label {word!r} stands for {value!r}, expected a version's number")
        labels[word] = number
    return labels
