"""A version appears in the repository as a whole or not at all, and never changes afterwards.

Everything is written in a hidden folder of the same repository, flushed to disk, and made visible by one rename: of the
model folder with a model's first version, of the version folder later.
"""

import dataclasses
import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cnnserve.datatypes import TensorSpec
from cnnserve.errors import ModelLoadFailed
from cnnserve.model_config import pbtxt
from cnnserve.model_config.settings import resolve
from cnnserve.repository import manifest as manifests
from cnnserve.repository.folders import MAX_VERSION, MODEL_NAME
from cnnserve.repository.manifest import MANIFEST_FILE, Manifest, TensorInfo
from cnnserve_export.contract import LARGEST_BATCH_SIZE, Contract
from cnnserve_export.errors import ExportError
from cnnserve_export.staging import alone, explained, flush, hidden_folder, sync


@dataclass(frozen=True)
class Target:
    """Where a version is to appear; `chosen`: its number was asked for, not only the next one."""

    repository: Path
    model: str
    version: int
    chosen: bool = False

    @property
    def model_folder(self) -> Path:
        """The model's folder in the repository."""
        return self.repository / self.model

    @property
    def folder(self) -> Path:
        """The version's folder."""
        return self.model_folder / str(self.version)


def plan(repository: Path, model: str, version: int | None = None) -> Target:
    """The place for a new version, by default the one after the newest. Raises `ExportError` where it is taken."""
    if not MODEL_NAME.fullmatch(model):
        raise ExportError(
            f"{model!r} is no model name; pass --name with letters, digits, '.', '_' and '-', "
            "a letter or digit first, 128 at most"
        )
    with explained(repository):
        for folder in (repository, repository / model):
            _refuse_unusable(folder)
        _refuse_elsewhere(repository, repository / model)
        number = version or max(_versions(repository / model), default=0) + 1
    target = Target(repository, model, number, chosen=version is not None)
    if target.version > MAX_VERSION:
        raise ExportError(f"version {target.version} is larger than servers read; the largest is {MAX_VERSION}")
    _refuse_taken(target)
    return target


def check_compatible(target: Target, contract: Contract, max_batch_size: int) -> None:
    """Refuses a version that the model's earlier versions or its config.pbtxt contradict. Raises `ExportError`."""
    for version in _versions(target.model_folder):
        with suppress(ModelLoadFailed):
            # A broken version serves no one, so it binds no one.
            earlier = manifests.read(target.model_folder / str(version))
            if earlier is not None:
                _check_same_contract(target, earlier, contract)
    _check_config(target, contract, max_batch_size)


@contextmanager
def staging(target: Target) -> Iterator[Path]:
    """A folder to fill with the version's files. Whatever `commit` has not made visible is gone at the end."""
    with hidden_folder(target.repository) as root:
        folder = root / str(target.version)
        folder.mkdir()
        yield folder


def commit(staged: Path, draft: Manifest, target: Target) -> Path:
    """Makes the files in `staged` a version: adds digests and manifest, flushes, renames. Returns the version's folder.

    Where `target` left the number open, it is the next one at that moment: other exports may have published meanwhile.
    Raises `ExportError` where they took the number that was asked for, or contradict this version.
    """
    root = staged.parent
    files = {path.name: manifests.digest(path) for path in sorted(staged.iterdir())}
    # The large files, before anyone else has to wait.
    flush(root)
    with alone(target.repository):
        target = _settled(target)
        check_compatible(target, Contract(draft.input, draft.output, draft.preprocessing), draft.max_batch_size)
        manifest = dataclasses.replace(draft, version=target.version, files=files)
        _write_manifest(staged, manifest)
        # A folder that is a link or holds anything is its owner's: nothing is added to it but the version.
        first = not target.model_folder.is_symlink() and _is_absent_or_empty(target.model_folder)
        if first:
            _write_config(root, staged, manifest)
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
        raise ExportError(f"{folder} is {what}, expected a folder")
    # Told before minutes of work, not by the rename after them.
    if not os.access(folder, os.W_OK | os.X_OK):
        reason = errno.EROFS if os.statvfs(folder).f_flag & os.ST_RDONLY else errno.EACCES
        raise OSError(reason, os.strerror(reason), str(folder))


def _refuse_elsewhere(repository: Path, model_folder: Path) -> None:
    # Only within one file system is a rename one step.
    if model_folder.exists() and model_folder.stat().st_dev != repository.stat().st_dev:
        what = "is a link to" if model_folder.is_symlink() else "is on"
        raise ExportError(
            f"{model_folder} {what} another file system than the repository's, and no version can appear there as a "
            "whole; move the folder into the repository, or choose another --name"
        )


def _refuse_taken(target: Target) -> None:
    if os.path.lexists(target.folder):
        raise ExportError(
            f"{target.folder} exists, and a published version never changes; "
            "leave --version out to publish the next one"
        )


def _check_same_contract(target: Target, earlier: Manifest, contract: Contract) -> None:
    was = _describe(earlier.input, earlier.class_count)
    now = _describe(contract.input, contract.class_count)
    if was != now:
        raise ExportError(
            f"version {earlier.version} of {target.model} takes {was}, this export {now}; "
            "clients of one model must not care for its version: publish this one under another --name"
        )


def _describe(tensor: TensorInfo, class_count: int) -> str:
    return f"{tensor.name!r} {tensor.datatype} {list(tensor.shape)} and has {class_count} classes"


def _check_config(target: Target, contract: Contract, max_batch_size: int) -> None:
    config = pbtxt.read(target.model_folder)
    if config is None:
        return
    settings = resolve(target.model, config, None, *_specs(contract.input, contract.output))
    if settings.max_batch_size > max_batch_size:
        wanted = settings.max_batch_size
        raise ExportError(
            f"{target.model}/{pbtxt.CONFIG_FILE} allows batches of {wanted}, this export proves "
            f"{max_batch_size}; "
            + (f"pass --max-batch-size {wanted}" if wanted <= LARGEST_BATCH_SIZE else f"write {max_batch_size} there")
        )


def _specs(*tensors: TensorInfo) -> Iterator[list[TensorSpec]]:
    for info in tensors:
        yield [TensorSpec(info.name, info.datatype, (-1, *info.shape))]


def _write_manifest(staged: Path, manifest: Manifest) -> None:
    text = manifests.to_json(manifest)
    # What the server would refuse must not be published.
    manifests.parse(text)
    (staged / MANIFEST_FILE).write_text(text, encoding="utf-8")


def _write_config(root: Path, staged: Path, manifest: Manifest) -> None:
    text = pbtxt.render(manifest)
    # As with the manifest.
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
            raise ExportError(
                f"{target.model} was published by someone else meanwhile; run the export again"
            ) from error
        raise
