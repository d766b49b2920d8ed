"""Publishes a version: it becomes visible as a whole or not at all, and never changes afterwards.

All files are written to a hidden folder of the same repository and flushed to disk. One rename then makes them visible:
a rename of the model folder for the first version of a model, of the version folder for later versions.
"""

import dataclasses
import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cnnserve.datatypes import TensorSpec
from cnnserve.errors import ModelLoadFailed
from cnnserve.model_config import pbtxt
from cnnserve.model_config.settings import resolve
from cnnserve.repository import manifest as manifests
from cnnserve.repository.folders import MAX_VERSION, MODEL_NAME
from cnnserve.repository.manifest import MANIFEST_FILE, Manifest, TensorInfo
from cnnserve.repository.staging import EXPORTS, alone, explained, flush, hidden_folder, sync
from cnnserve_export.contract import LARGEST_BATCH_SIZE, Contract
from cnnserve_export.errors import ExportError


class Signs(Protocol):
    """Signs what is published: a `signing.Signer`. This module does not import the packages that it needs."""

    def sign_version(self, folder: Path) -> Path:
        """Signs a version folder and returns the path of the signature."""

    def sign_model(self, folder: Path, name: str) -> Path:
        """Signs the files beside the version folders of the model `name`, and returns the path of the signature."""


@dataclass(frozen=True)
class Target:
    """Where a version will be published; `chosen` is true if the user asked for its number."""

    repository: Path
    model: str
    version: int
    chosen: bool = False

    @property
    def model_folder(self) -> Path:
        """Folder of the model in the repository."""
        return self.repository / self.model

    @property
    def folder(self) -> Path:
        """Folder of the version."""
        return self.model_folder / str(self.version)


def plan(repository: Path, model: str, version: int | None = None) -> Target:
    """Returns the place of a new version, by default with the number after the newest.

    Raises `ExportError` if the name or the number is not allowed, if the version exists, and if the folders cannot be
    used.
    """
    if not MODEL_NAME.fullmatch(model):
        raise ExportError(
            f"{model!r} is not a model name; choose one with at most 128 letters, digits, '.', '_' and '-', the first "
            "of them a letter or a digit"
        )
    with explained(repository, ExportError):
        for folder in (repository, repository / model):
            _refuse_unusable(folder)
        _refuse_elsewhere(repository, repository / model)
        number = version or max(_versions(repository / model), default=0) + 1
    target = Target(repository, model, number, chosen=version is not None)
    if target.version > MAX_VERSION:
        raise ExportError(f"version {target.version} is too large; pass a --version of at most {MAX_VERSION}")
    _refuse_taken(target)
    return target


def check_compatible(target: Target, contract: Contract, max_batch_size: int) -> None:
    """Raises `ExportError` if the version contradicts the model's earlier versions or its config.pbtxt."""
    for version in _versions(target.model_folder):
        with suppress(ModelLoadFailed):
            # No server loads a version with a broken manifest, so no client depends on it.
            earlier = manifests.read(target.model_folder / str(version))
            if earlier is not None:
                _check_same_contract(target, earlier, contract)
    _check_config(target, contract, max_batch_size)


@contextmanager
def staging(target: Target) -> Iterator[Path]:
    """Yields a folder for the version's files; at the end, files that `commit` has not published are removed."""
    with hidden_folder(target.repository, EXPORTS, ExportError) as root:
        folder = root / str(target.version)
        folder.mkdir()
        yield folder


def commit(staged: Path, draft: Manifest, target: Target, signer: Signs | None = None) -> Path:
    """Publishes the files in `staged` with digests and manifest as a version, and returns the version's folder.

    `signer` signs the version and, if this is the first version of the model, the files beside it.

    If the user did not ask for a number, the version gets the next one at this moment, because other exports may have
    published versions meanwhile. Raises `ExportError` if they took the number that the user asked for, or if this
    version does not fit theirs.
    """
    root = staged.parent
    files = {path.name: manifests.digest(path) for path in sorted(staged.iterdir())}
    # Large files are flushed before the lock is taken, so that other exports need not wait for them.
    flush(root)
    with alone(target.repository):
        target = _settled(target)
        check_compatible(target, Contract(draft.input, draft.output, draft.preprocessing), draft.max_batch_size)
        manifest = dataclasses.replace(draft, version=target.version, files=files)
        _write_manifest(staged, manifest)
        if signer is not None:
            signer.sign_version(staged)
        # A model folder that is a link or holds anything belongs to the user, so only the version is added to it.
        first = not target.model_folder.is_symlink() and _is_absent_or_empty(target.model_folder)
        if first:
            _write_config(root, staged, manifest)
            if signer is not None:
                signer.sign_model(root, target.model)
        flush(root)
        if first:
            _rename(root, target.model_folder, target)
        else:
            _rename(staged, target.folder, target)
            sync(target.model_folder)
        sync(target.repository)
    return target.folder


def _settled(target: Target) -> Target:
    if target.chosen:
        _refuse_taken(target)
        return target
    newest = max(_versions(target.model_folder), default=0)
    return dataclasses.replace(target, version=max(target.version, newest + 1))


def _versions(model_folder: Path) -> list[int]:
    try:
        names = [path.name for path in model_folder.iterdir()]
    except FileNotFoundError:
        return []
    return sorted(int(name) for name in names if name.isascii() and name.isdecimal())


def _refuse_unusable(folder: Path) -> None:
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        what = "a link to nothing" if folder.is_symlink() and not folder.exists() else "a file"
        raise ExportError(f"{folder} is {what}, expected a folder; remove it, or choose another --repository or --name")
    # Checked now, because the rename would report it only after minutes of work.
    if not os.access(folder, os.W_OK | os.X_OK):
        reason = errno.EROFS if os.statvfs(folder).f_flag & os.ST_RDONLY else errno.EACCES
        raise OSError(reason, os.strerror(reason), str(folder))


def _refuse_elsewhere(repository: Path, model_folder: Path) -> None:
    # A rename is one step only within one file system.
    if model_folder.exists() and model_folder.stat().st_dev != repository.stat().st_dev:
        what = "is a link to" if model_folder.is_symlink() else "is on"
        raise ExportError(
            f"{model_folder} {what} another file system than the repository, so one rename cannot publish a version "
            "there; move the folder into the repository, or choose another --name"
        )


def _refuse_taken(target: Target) -> None:
    if os.path.lexists(target.folder):
        raise ExportError(
            f"{target.folder} exists, and a published version never changes; leave its number out to publish the next "
            "version"
        )


def _check_same_contract(target: Target, earlier: Manifest, contract: Contract) -> None:
    was = _describe(earlier.input, earlier.class_count)
    now = _describe(contract.input, contract.class_count)
    if was != now:
        raise ExportError(
            f"version {earlier.version} of {target.model} has {was}, this version has {now}; all versions of a model "
            "must suit the same clients, so choose another name"
        )


def _describe(tensor: TensorInfo, class_count: int) -> str:
    return f"the input {tensor.name!r} {tensor.datatype} {list(tensor.shape)} and {class_count} classes"


def _check_config(target: Target, contract: Contract, max_batch_size: int) -> None:
    config = pbtxt.read(target.model_folder)
    if config is None:
        return
    settings = resolve(target.model, config, None, *_specs(contract.input, contract.output))
    if settings.max_batch_size > max_batch_size:
        wanted = settings.max_batch_size
        raise ExportError(
            f"{target.model}/{pbtxt.CONFIG_FILE} allows batches of {wanted}, but this version is checked "
            f"for batches of up to {max_batch_size}; "
            + (
                f"pass --max-batch-size {wanted}"
                if wanted <= LARGEST_BATCH_SIZE
                else f"set max_batch_size to {max_batch_size} there"
            )
        )


def _specs(*tensors: TensorInfo) -> Iterator[list[TensorSpec]]:
    for info in tensors:
        yield [TensorSpec(info.name, info.datatype, (-1, *info.shape))]


def _write_manifest(staged: Path, manifest: Manifest) -> None:
    text = manifests.to_json(manifest)
    # The server must be able to read what is published.
    manifests.parse(text)
    (staged / MANIFEST_FILE).write_text(text, encoding="utf-8")


def _write_config(root: Path, staged: Path, manifest: Manifest) -> None:
    text = pbtxt.render(manifest)
    # As for the manifest: the server must be able to read it.
    config = pbtxt.parse(text, manifest.model)
    resolve(manifest.model, config, manifest, *_specs(manifest.input, manifest.output))
    (root / pbtxt.CONFIG_FILE).write_text(text, encoding="utf-8")
    if manifest.labels:
        shutil.copyfile(staged / manifest.labels, root / manifest.labels)


def _is_absent_or_empty(folder: Path) -> bool:
    return not folder.exists() or not any(folder.iterdir())


def _rename(source: Path, destination: Path, target: Target) -> None:
    try:
        source.rename(destination)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise ExportError(f"somebody else published {target.model} meanwhile; run the command again") from error
        raise
