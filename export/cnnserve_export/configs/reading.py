"""Reads a JSON file with the preprocessing of training, whoever wrote it."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cnnserve.repository.manifest import Preprocessing
from cnnserve_export import files
from cnnserve_export.configs import hugging_face, timm, torchvision
from cnnserve_export.configs.fields import Fields
from cnnserve_export.errors import ExportError

_MAX_BYTES = 8 << 20


# The fields by which a kind of file is known, and its reader.
_KINDS: tuple[tuple[tuple[str, ...], Callable[[Fields], Preprocessing]], ...] = (
    (("image_processor_type", "feature_extractor_type", "image_mean"), hugging_face.read),
    (("pretrained_cfg", "crop_pct", "crop_mode", "input_size"), timm.read),
    (("resize_size", "crop_size"), torchvision.read),
)


def read(path: Path) -> Preprocessing:
    """Returns the preprocessing that the file states.

    Raises `ExportError` if the file cannot be read, is of no known kind, or says what cannot be served.
    """
    raw = _json(path)
    for known, reader in _KINDS:
        if any(raw.get(field) is not None for field in known):
            return reader(Fields(raw, path.name))
    raise ExportError(
        f"{path.name} is no preprocessing that is known (it has {', '.join(map(repr, list(raw)[:8])) or 'no fields'}); "
        "give a timm config, a preprocessor_config.json of Hugging Face, or the metadata of torchvision's weights"
    )


def _json(path: Path) -> Mapping[str, Any]:
    files.check_plain(path, str(path))
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ExportError(f"{path} has more than {_MAX_BYTES >> 20} MiB, so it is no preprocessing")
        raw = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ExportError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{path} is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ExportError(f"{path} holds a {type(raw).__name__}, expected a JSON object")
    return raw
