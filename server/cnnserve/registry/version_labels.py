"""Version labels: a request names its version by number, or by a label of the model's `version_labels.json`.

    {"stable": 3, "canary": 4}

The file is read off the event loop when it has changed, never for a request.
"""

import logging
import re
from pathlib import Path
from stat import S_ISREG

from cnnserve import json_text
from cnnserve.errors import ModelLoadFailed, VersionNotFound
from cnnserve.registry.lifecycle import ModelEntry, VersionLabels
from cnnserve.repository.folders import LABELS_FILE, ModelFolder, model_folder, version_number
from cnnserve.repository.signature import SIGNATURE_FILE

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


def read_labels(folder: ModelFolder, before: VersionLabels) -> VersionLabels:
    """Returns the labels in a model's folder. Blocks.

    If the file is broken, or is not signed although it must be, logs that once and returns the labels that were read
    before.
    """
    names = (LABELS_FILE,) if folder.trust is None else (LABELS_FILE, SIGNATURE_FILE)
    try:
        signature = [_state(folder.path / name) for name in names]
        if signature == before.signature:
            return before
        if signature == [None]:
            return VersionLabels()
    except OSError:
        return before
    try:
        # Listed only now, because the file rarely changes: a version that is mounted as a model is signed otherwise.
        with model_folder(folder.path, name=folder.name, trust=folder.trust).open() as tree:
            labels = parse_labels(tree.read(LABELS_FILE).decode("utf-8-sig")) if tree.has(LABELS_FILE) else {}
        return VersionLabels(labels, signature)
    except (OSError, ValueError, ModelLoadFailed) as error:
        # A model without labels may lack a signature, too. Its loads say so.
        if signature[0] is not None or before.versions:
            _log.error("model %s: %s is ignored, the labels stay as they were: %s", folder.name, LABELS_FILE, error)
        return VersionLabels(before.versions, signature)


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    if not S_ISREG(stat.st_mode):
        raise OSError("it is not a file")
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


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
