"""Finds models and versions on disk: `<repository>/<model>/<version>/model.onnx`. Reads names only, never a model."""

import contextlib
import errno
import json
import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cnnserve import json_text
from cnnserve.errors import ModelLoadFailed, ModelNotFound, reason
from cnnserve.repository.signature import Trust
from cnnserve.repository.signed_tree import SignedTree
from cnnserve.repository.tree import Tree

# Model names are used in URLs, log lines, metric labels and paths.
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
MAX_VERSION = 10**18 - 1
_VERSION = re.compile(r"[1-9][0-9]{0,17}")
MODEL_FILE = "model.onnx"
MANIFEST_FILE = "manifest.json"
LABELS_FILE = "version_labels.json"
# The model's own files, which may also lie in the folder of a version that is mounted as a model.
MODEL_LEVEL = frozenset({"config.pbtxt", "configs", "warmup", LABELS_FILE})
# A manifest holds no values of classes, so that 8 MiB are far more than it needs. The parser holds the global
# interpreter lock: JSON of 100 MB would delay the requests of other models for seconds.
LARGEST_MANIFEST = 8 << 20

# Path below the model's folder, inode, size (bytes) and modification time (ns).
FileStat = tuple[str, int, int, int]


@dataclass(frozen=True)
class ModelFolder:
    """One model's folder, and the folders of its versions by number.

    `config`: JSON of a load request, which replaces any file. `config_file`: path below `path` of the file that is read
    instead of config.pbtxt if it exists. `unreadable`: why the folder cannot be listed now; "": it can. `verified`: the
    model has had a version with a manifest, so one without needs the consent of the config file. `trust`: the keys that
    must have signed the files; None: signatures do not matter. `asked`: the name of the ONNX file that was asked for;
    "": any. `alias`: who runs the server gave the name, so the files may be those of a model of another name.
    """

    name: str
    path: Path
    versions: dict[int, Path]
    config: str = ""
    config_file: str = ""
    unreadable: str = ""
    verified: bool = False
    trust: Trust | None = None
    asked: str = ""
    alias: bool = False

    @property
    def mounted(self) -> bool:
        """Whether the folder is a version's folder that was given as that of a model: then `name` is an alias."""
        return self.path in self.versions.values()

    def open(self) -> Tree:
        """Opens the folder, in which only signed files count if there are trusted keys.

        Raises `OSError`, and `ModelLoadFailed` if the files beside the version folders have no valid signature.
        """
        if self.trust is None:
            return Tree(self.path)
        if self.mounted:
            return SignedTree(self.path, self.trust)
        return SignedTree(self.path, self.trust, self.name, [path.name for path in self.versions.values()])

    def place(self, version: int) -> str:
        """Returns the path of a version's folder below `path`; "" if it is `path` itself."""
        folder = self.versions[version]
        return "" if folder == self.path else folder.name


@dataclass(frozen=True)
class Fingerprint:
    """Describes the files of a version: the `shared` ones in the model's folder, and the version's own."""

    shared: tuple[FileStat, ...]
    own: tuple[FileStat, ...]
    # JSON of the load request, if it had a config.
    config: str = ""


class NamedModels:
    """Single models by name, in place of a model repository.

    A path is an ONNX file, or the folder of a version or of a model.
    """

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self._paths = {name: path.absolute() for name, path in sorted(paths.items())}

    def names(self) -> list[str]:
        """Returns the names, sorted."""
        return list(self._paths)

    def place(self, name: str) -> Path:
        """Returns the folder of a model. Raises `ModelNotFound`."""
        if name not in self._paths:
            raise ModelNotFound(f"model {name!r} is not served by this server")
        path = self._paths[name]
        return path if _is_folder(path) else path.parent

    def folder(self, name: str, config_name: str = "", trust: Trust | None = None) -> ModelFolder:
        """Returns a model's folder under its name. Raises `ModelNotFound`."""
        place = self.place(name)
        folder = replace(model_folder(place, config_name, name, trust), alias=True)
        path = self._paths[name]
        if path == place:
            path = place / MODEL_FILE
        else:
            # A file beside others, which are no versions of it.
            has_manifest = (place / MANIFEST_FILE).exists()
            folder = replace(folder, versions=_mounted_version(place, trust) if has_manifest else {}, asked=path.name)
        if folder.versions or not path.is_file():
            return folder
        config = "" if path.name == MODEL_FILE else json.dumps({"default_model_filename": path.name})
        return replace(folder, versions={version_number(place.name) or 1: place}, config=config)


# Where models are found.
Models = Path | NamedModels


def scan(root: Models, config_name: str = "", trust: Trust | None = None) -> list[ModelFolder]:
    """Returns every model of the model repository, sorted by name: each folder whose name is a model name.

    `config_name` chooses the config file of each model, `trust` has the keys that must have signed its files. Hidden
    folders are no models. Raises `ModelLoadFailed` if the model repository cannot be read.
    """
    if isinstance(root, NamedModels):
        return [root.folder(name, config_name, trust) for name in root.names()]
    try:
        folders = sorted(path for path in root.iterdir() if _is_folder(path))
    except OSError as error:
        raise ModelLoadFailed(f"the model repository cannot be read: {error.strerror}") from error
    return [model_folder(path, config_name, trust=trust) for path in folders if MODEL_NAME.fullmatch(path.name)]


def misnamed(root: Models) -> list[str]:
    """Returns the names of folders that are ignored only because of their names, sorted.

    Hidden folders are not among them, because they are hidden on purpose.
    """
    if isinstance(root, NamedModels):
        return []
    with contextlib.suppress(OSError):
        folders = [path.name for path in root.iterdir() if _is_folder(path) and not path.name.startswith(".")]
        return sorted(name for name in folders if not MODEL_NAME.fullmatch(name))
    return []


def place(root: Models, name: str) -> Path:
    """Returns where the folder of a model is, or would be."""
    return root.place(name) if isinstance(root, NamedModels) else root / name


def find(root: Models, name: str, config_name: str = "", trust: Trust | None = None) -> ModelFolder:
    """Returns one model's folder by its name, as `scan` does.

    Raises `ModelNotFound` if there is no such folder, or if `name` is no model name.
    """
    if isinstance(root, NamedModels):
        return root.folder(name, config_name, trust)
    if not MODEL_NAME.fullmatch(name) or not _is_folder(root / name):
        raise ModelNotFound(f"model {name!r} is not in the model repository")
    return model_folder(root / name, config_name, trust=trust)


def fingerprint(folder: ModelFolder, version: int, tree: Tree | None = None) -> Fingerprint:
    """Returns the fingerprint of one version. If it differs from an earlier one, the version's files have changed.

    `tree`: the opened folder of the model. A file that is deleted meanwhile is left out, and so is one that no load
    would read. Hidden files and folders do not belong to a version. Neither do the version labels, which are read
    separately.
    """
    if tree is None:
        try:
            with Tree(folder.path) as opened:
                return fingerprint(folder, version, opened)
        except OSError:
            return Fingerprint((), (), folder.config)
    own = _stats(tree, _model_files(tree, folder.place(version))) if version in folder.versions else ()
    named = _stats(tree, [folder.config_file] if folder.config_file else [])
    return Fingerprint(_stats(tree, _files(tree, "")) + named, own, folder.config)


def named(path: Path) -> Path:
    """Returns a path that people gave, as an absolute one.

    The last folder's name is that of a model or a version, so a link is not resolved; but ".." is no name.
    """
    return path.resolve() if ".." in path.parts else path.absolute()


def file_stat(path: str, state: os.stat_result) -> FileStat:
    """Returns what a fingerprint contains of a file."""
    return path, state.st_ino, state.st_size, state.st_mtime_ns


def _files(tree: Tree, path: str) -> list[str]:
    with contextlib.suppress(OSError, ModelLoadFailed):
        names = [name for name in tree.names(path) if not name.startswith(".") and name != LABELS_FILE]
        return [f"{path}/{name}" if path else name for name in names]
    return []


def _model_files(tree: Tree, path: str) -> list[str]:
    """Returns a version's own files, and the files of a model that is a folder because it has several files."""
    files = _files(tree, path)
    inner = [_files(tree, file) for file in files]
    return sum((found for file, found in zip(files, inner, strict=True) if f"{file}/{MODEL_FILE}" in found), files)


def _stats(tree: Tree, files: Iterable[str]) -> tuple[FileStat, ...]:
    stats = []
    for file in files:
        with contextlib.suppress(OSError, ModelLoadFailed):
            state = tree.stat(file)
            if stat.S_ISREG(state.st_mode):
                stats.append(file_stat(file, state))
    return tuple(stats)


def model_folder(path: Path, config_name: str = "", name: str = "", trust: Trust | None = None) -> ModelFolder:
    """Returns one model's folder. Its subfolders 1, 2, 3, ... are the versions; if it cannot be read, it has none.

    The folder of a version, as KServe mounts it, may also be given as that of a model. Then its manifest states the
    number of the only version, and subfolders without a manifest are no versions. `name`: the name of the model; by
    default that of the folder, unless it is a number.
    """
    versions, unreadable = {}, ""
    try:
        versions = {
            int(child.name): child for child in path.iterdir() if version_number(child.name) and _is_folder(child)
        }
    except FileNotFoundError:
        pass
    except OSError as error:
        unreadable = reason(error)
    has_versions = any(os.path.lexists(child / MANIFEST_FILE) for child in versions.values())
    is_version = not versions or (not has_versions and os.path.lexists(path / MANIFEST_FILE))
    if is_version and not unreadable and (name or not version_number(path.name)):
        versions = _mounted_version(path, trust)
    config_file = f"configs/{config_name}.pbtxt" if config_name else ""
    return ModelFolder(
        name or path.name,
        path,
        dict(sorted(versions.items())),
        config_file=config_file,
        unreadable=unreadable,
        trust=trust,
    )


def _mounted_version(path: Path, trust: Trust | None) -> dict[int, Path]:
    """Returns the version whose folder this is, if it has a manifest. If that is broken, any number will do: 1."""
    try:
        with Tree(path) if trust is None else SignedTree(path, trust) as tree:
            if not tree.has(MANIFEST_FILE):
                return {}
            data = tree.read(MANIFEST_FILE, LARGEST_MANIFEST)
            stated = json_text.loads(data)
    except (OSError, ModelLoadFailed, ValueError):
        return {1: path} if os.path.lexists(path / MANIFEST_FILE) else {}
    number = version_number(str(stated.get("version"))) if isinstance(stated, dict) else None
    return {number or 1: path}


def _is_folder(path: Path) -> bool:
    """Returns whether there is a folder. One that cannot be looked at for a moment has not gone, so it counts."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


def version_number(text: str) -> int | None:
    """Returns the version number that `text` is, or None if it is none."""
    return int(text) if _VERSION.fullmatch(text) else None
