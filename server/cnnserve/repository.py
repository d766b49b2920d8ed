"""What is on disk: `<repository>/<model>/<version>/model.onnx`. Reads names only, never a model."""

import re
from dataclasses import dataclass
from pathlib import Path

from cnnserve.errors import InvalidInput, ModelLoadFailed, ModelNotFound

# Names travel in URLs, log lines and metric labels, and become paths.
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")


@dataclass(frozen=True)
class ModelFolder:
    """One model's folder and its versions by number."""

    name: str
    path: Path
    versions: dict[int, Path]


def scan(root: Path) -> list[ModelFolder]:
    """Every model of the repository, by name. Hidden folders and those without a version folder or config are skipped.

    Raises `ModelLoadFailed` where the repository itself cannot be read.
    """
    try:
        folders = sorted(path for path in root.iterdir() if path.is_dir())
    except OSError as error:
        raise ModelLoadFailed(f"the model repository {root} cannot be read: {error.strerror}") from error
    return [model_folder(path) for path in folders if MODEL_NAME.fullmatch(path.name)]


def find(root: Path, name: str) -> ModelFolder:
    """One model's folder by its name. Raises `ModelNotFound`, also for a name that no model may have."""
    if not MODEL_NAME.fullmatch(name) or not (root / name).is_dir():
        raise ModelNotFound(f"model {name!r} is not in the repository")
    return model_folder(root / name)


def fingerprint(folder: ModelFolder, version: int) -> tuple[tuple[str, int, int, int], ...]:
    """Name, inode, size and mtime of everything one version is made of; another value means its files changed."""
    files = [path for path in folder.path.iterdir() if path.is_file()] + list(folder.versions[version].iterdir())
    stats = [(str(path.relative_to(folder.path)), path.stat()) for path in sorted(files)]
    return tuple((name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def model_folder(path: Path) -> ModelFolder:
    """One model's folder: subfolders named 1, 2, 3, ... are its versions."""
    versions = {int(child.name): child for child in path.iterdir() if _VERSION.fullmatch(child.name) and child.is_dir()}
    return ModelFolder(path.name, path, dict(sorted(versions.items())))


def parse_version(text: str) -> int | None:
    """A version number from a request: None where none is asked for. Raises `InvalidInput` for anything else."""
    if not text:
        return None
    if not _VERSION.fullmatch(text):
        raise InvalidInput(f"version {text!r} is not a positive integer; leave it empty for the newest one")
    return int(text)
