"""Version labels: a request names its version by number, or by a label of the model's `version_labels.json`.

    {"stable": 3, "canary": 4}

The file is read off the event loop when it has changed, never for a request.
"""

import logging
import re
from pathlib import Path
from stat import S_ISREG

from cnnserve import json_text
from cnnserve.errors import VersionNotFound
from cnnserve.registry.lifecycle import ModelEntry, VersionLabels
from cnnserve.repository.folders import LABELS_FILE, version_number

_log = logging.getLogger(__name__)

# A label begins with a letter, so that it cannot be taken for a number.
_LABEL = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,127}")


def resolve(entry: ModelEntry, text: str) -> int:
    """Returns the number of the version that `text` names. Raises `VersionNotFound` with the versions that exist."""
    number = version_number(text)
    said = f"version {text}"
    if number is None and (number := entry.labels.versions.get(text)) is not None:
        said = f"version {number}, for which the label '{text}' stands"
    if number is not None and number in entry.versions:
        return number
    known = ", ".join(map(str, entry.versions)) or "none"
    labels = ", ".join(entry.labels.versions) or "none"
    if number is None:
        said = f"version {text[:80]!r}, which is neither a version number nor a label"
    raise VersionNotFound(f"model '{entry.name}' has no {said}; it has {known} (labels: {labels})")


def read_labels(folder: Path, before: VersionLabels) -> VersionLabels:
    """Returns the labels in a model's folder. Blocks.

    If the file is broken, logs that once and returns the labels that were read before.
    """
    path = folder / LABELS_FILE
    try:
        stat = path.stat()
    except FileNotFoundError:
        return VersionLabels()
    except OSError:
        return before
    if not S_ISREG(stat.st_mode):
        # A pipe would hold the reader for ever.
        return before
    signature = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
    if signature == before.signature:
        return before
    try:
        return VersionLabels(parse_labels(path.read_text(encoding="utf-8")), signature)
    except (OSError, ValueError) as error:
        _log.error("model %s: %s is ignored, the labels stay as they were: %s", folder.name, LABELS_FILE, error)
        return VersionLabels(before.versions, signature)


def parse_labels(text: str) -> dict[str, int]:
    """Returns the version number of each label, sorted by label. Raises `ValueError` with what is wrong."""
    raw = json_text.loads(text)
    if not isinstance(raw, dict):
        raise ValueError(f'it holds a {type(raw).__name__}, expected an object such as {{"stable": 3}}')
    labels = {}
    for label, value in sorted(raw.items()):
        number = version_number(str(value))
        if not _LABEL.fullmatch(label):
            raise ValueError(
                f"{label!r} is not a label: a label has at most 128 letters, digits, '.', '_' and '-' "
                "and begins with a letter"
            )
        if number is None:
            raise ValueError(f"the label {label!r} stands for {value!r}, expected a version number")
        labels[label] = number
    return labels
