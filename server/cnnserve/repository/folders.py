"""What is on disk: `<repository>/<model>/<version>/model.onnx`. Reads names only, never a model."""

import contextlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cnnserve.errors import ModelLoadFailed, ModelNotFound

# Names travel in URLs, log lines and metric labels, and become paths.
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
MAX_VERSION = 10**18 - 1
_VERSION = re.compile(r"[1-9][0-9]{0,17}")
MODEL_FILE = "model.onnx"
LABELS_FILE = "version_labels.json"

# Name, inode, size and mtime.
FileStat = tuple[str, int, int, int]


@dataclass(frozen=True)
class ModelFolder:
    """One model's folder and its versions by number.

    `config`: JSON that a load brought, in place of any file. `config_file`: what is read in place of config.pbtxt where
    it is there, relative to `path`.
    """

    name: str
    path: Path
    versions: dict[int, Path]
    config: str = ""
    config_file: str = ""


@dataclass(frozen=True)
class Fingerprint:
    """The files a version is made of: those of the model's folder, which its versions share, and its own."""

    shared: tuple[FileStat, ...]
    own: tuple[FileStat, ...]
    # Of the load itself, where it brought one.
    config: str = ""


def scan(root: Path, config_name: str = "") -> list[ModelFolder]:
    """Every model of the repository, by name: each folder that is not hidden and whose name a model may have.

    `config_name` chooses among their configs. Raises `ModelLoadFailed` where the repository itself cannot be read.
    """
    try:
        folders = sorted(path for path in root.iterdir() if path.is_dir())
    except OSError as error:
        raise ModelLoadFailed(f"the model repository cannot be read: {error.strerror}") from error
    return [model_folder(path, config_name) for path in folders if MODEL_NAME.fullmatch(path.name)]


def misnamed(root: Path) -> list[str]:
    """Folders that are no models for their names alone; hidden ones are meant to be."""
    with contextlib.suppress(OSError):
        folders = [path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
        return sorted(name for name in folders if not MODEL_NAME.fullmatch(name))
    return []


def find(root: Path, name: str, config_name: str = "") -> ModelFolder:
    """One model's folder by its name, as `scan` gives it.

    Raises `ModelNotFound`, also for a name that no model may have.
    """
    if not MODEL_NAME.fullmatch(name) or not (root / name).is_dir():
        raise ModelNotFound(f"model {name!r} is not in the model repository")
    return model_folder(root / name, config_name)


def fingerprint(folder: ModelFolder, version: int) -> Fingerprint:
    """What one version is made of; another value means its files changed. A file that vanishes meanwhile is left out.

    Hidden files and folders are none of a model's, nor are the labels, which are read by themselves.
    """
    own = _stats(_model_files(folder.versions[version])) if version in folder.versions else ()
    named = _stats([folder.path / folder.config_file] if folder.config_file else [])
    return Fingerprint(_stats(_files(folder.path)) + named, own, folder.config)


def _files(path: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return [file for file in sorted(path.iterdir()) if not file.name.startswith(".") and file.name != LABELS_FILE]
    return []


def _model_files(path: Path) -> list[Path]:
    """A version's own files, and those of the folder that is its model where that has several."""
    files = _files(path)
    with contextlib.suppress(OSError):
        return [*files, *(file for folder in files if (folder / MODEL_FILE).is_file() for file in _files(folder))]
    return files


def _stats(files: Iterable[Path]) -> tuple[FileStat, ...]:
    stats = []
    for file in files:
        with contextlib.suppress(OSError):
            if file.is_file():
                stat = file.stat()
                stats.append((file.name, stat.st_ino, stat.st_size, stat.st_mtime_ns))
    return tuple(stats)


def model_folder(path: Path, config_name: str = "") -> ModelFolder:
    """One model's folder: subfolders named 1, 2, 3, ... are its versions. One that cannot be read has none."""
    versions = {}
    with contextlib.suppress(OSError):
        versions = {int(child.name): child for child in path.iterdir() if version_number(child.name) and child.is_dir()}
    config_file = f"configs/{config_name}.pbtxt" if config_name else ""
    return ModelFolder(path.name, path, dict(sorted(versions.items())), config_file=config_file)


def version_number(text: str) -> int | None:
    """The version that `text` is the number of; None for any other text."""
    return int(text) if _VERSION.fullmatch(text) else None
