"""Reads `manifest.json`, in schema 1 and in schema 2, and the same words elsewhere. Blocks."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnnserve import json_text
from cnnserve.errors import ModelLoadFailed, reason
from cnnserve.repository import version_files
from cnnserve.repository.folders import LARGEST_MANIFEST, MANIFEST_FILE, ModelFolder
from cnnserve.repository.manifest import checks
from cnnserve.repository.manifest.fields import InvalidField, build
from cnnserve.repository.manifest.preprocessing import check_preprocessing
from cnnserve.repository.manifest.probabilities import golden_bytes
from cnnserve.repository.manifest.schema import SCHEMA, Golden, Manifest, Preprocessing
from cnnserve.repository.version_files import VersionFiles


def read(folder: Path) -> Manifest | None:
    """Returns the manifest of a version folder, as `read_from` does."""
    with version_files.of(folder) as files:
        return read_from(files)


def read_from(files: VersionFiles) -> Manifest | None:
    """Returns the manifest of a version, or None if it has none.

    Raises `ModelLoadFailed` with the field that is wrong, and if there is a manifest that cannot be read.
    """
    if not files.has(MANIFEST_FILE):
        return None
    try:
        return parse(files.read(MANIFEST_FILE))
    except FileNotFoundError as error:
        # A link to nothing is a broken manifest, not a missing one.
        raise ModelLoadFailed(f"{MANIFEST_FILE} cannot be read: {reason(error)}") from error


def any_manifest(folder: ModelFolder) -> bool:
    """Returns whether a version of the model has a manifest. A folder that cannot be listed may have one, it counts."""
    for version in folder.versions:
        try:
            with VersionFiles(folder, version) as files:
                if files.has(MANIFEST_FILE):
                    return True
        except ModelLoadFailed:
            return True
    return False


def parse(data: bytes | str) -> Manifest:
    """Returns the manifest that `data` contains. Raises `ModelLoadFailed` with the field that is wrong."""
    if len(data) > LARGEST_MANIFEST:
        raise ModelLoadFailed(
            f"{MANIFEST_FILE} has more than {LARGEST_MANIFEST >> 20} MiB, the limit; export the model again: golden "
            "probabilities belong into a file of their own"
        )
    try:
        raw = json_text.loads_strictly(data.decode("utf-8-sig") if isinstance(data, bytes) else data)
    except UnicodeDecodeError as error:
        raise ModelLoadFailed(f"{MANIFEST_FILE} cannot be read: {reason(error)}") from error
    except ValueError as error:
        raise ModelLoadFailed(f"{MANIFEST_FILE} is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ModelLoadFailed(f"{MANIFEST_FILE} holds a {type(raw).__name__}, expected a JSON object")
    schema = raw.get("schema")
    if type(schema) is not int or schema not in (1, SCHEMA):
        raise ModelLoadFailed(
            f"{MANIFEST_FILE} has schema {str(schema)[:80]}, this server reads 1 and {SCHEMA}; export the model again"
        )
    try:
        manifest = build(Manifest, raw) if schema == SCHEMA else _schema_1(raw)
        checks.check(manifest)
    except InvalidField as error:
        raise ModelLoadFailed(f"{MANIFEST_FILE}: {error}") from error
    return manifest


def parse_preprocessing(text: str, image_shape: tuple[int, ...]) -> Preprocessing:
    """Returns the preprocessing that JSON with the fields of a manifest's `preprocessing` describes.

    `image_shape`: height, width and channels of the model's input. Raises `ModelLoadFailed` with the field that is
    wrong.
    """
    try:
        raw = json_text.loads_strictly(text)
    except ValueError as error:
        raise ModelLoadFailed(f"it is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ModelLoadFailed(f"it holds a {type(raw).__name__}, expected a JSON object")
    try:
        # In a manifest both fields are required and null means none. In this text people may leave them out.
        spec = build(Preprocessing, {"resize": None, "crop": None} | raw)
        check_preprocessing(spec, image_shape)
    except InvalidField as error:
        raise ModelLoadFailed(str(error)) from error
    return spec


@dataclass(frozen=True)
class _Golden1:
    image: str
    probabilities: tuple[float, ...]
    tolerance: float


@dataclass(frozen=True)
class _GoldenOf1:
    golden: _Golden1


def _schema_1(raw: dict[str, Any]) -> Manifest:
    """Returns a manifest of schema 1, which has one golden image with its probabilities, and whose readers ignored
    unknown fields."""
    golden = build(_GoldenOf1, raw, strict=False).golden
    inline = golden_bytes(golden.probabilities)
    empty: dict[str, Any] = {"images": [], "probabilities": None, "tolerance": 0, "log_tolerance": None}
    manifest = build(Manifest, raw | {"golden": empty, "origin": None}, strict=False)
    return dataclasses.replace(manifest, golden=Golden((golden.image,), None, golden.tolerance, None, inline))
