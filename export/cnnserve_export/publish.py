"""A version appears in the repository as a whole or not at all, and never changes afterwards.

Everything is written in a hidden folder of the same repository, flushed to disk, and made visible by one rename: of the
model folder with a model's first version, of the version folder later.
"""

import dataclasses
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cnnserve import manifest as manifests
from cnnserve import model_config
from cnnserve.datatypes import TensorSpec
from cnnserve.errors import ModelLoadFailed
from cnnserve.manifest import MANIFEST_FILE, Manifest, TensorInfo
from cnnserve.repository import MAX_VERSION, MODEL_NAME
from cnnserve_export.contract import Contract
from cnnserve_export.errors import ExportError

# Containers read the repository as another user, whatever the exporting user's umask.
_FILE_MODE, _FOLDER_MODE = 0o644, 0o755


@dataclass(frozen=True)
class Target:
    """Where a version is to appear."""

    repository: Path
    model: str
    version: int

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
            f"{model!r} is no model name; use letters, digits, '.', '_' and '-', a letter or digit first, 128 at most"
        )
    for folder in (repository, repository / model):
        if folder.exists() and not folder.is_dir():
            raise ExportError(f"{folder} is a file, expected a folder")
    target = Target(repository, model, version or max(_versions(repository / model), default=0) + 1)
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
    repository = target.repository
    created = not repository.exists()
    try:
        repository.mkdir(parents=True, exist_ok=True)
        root = Path(tempfile.mkdtemp(prefix=".publish-", dir=repository))
    except OSError as error:
        raise ExportError(f"the repository {repository} cannot be written: {error.strerror}") from error
    try:
        if created:
            repository.chmod(_FOLDER_MODE)
        folder = root / str(target.version)
        folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(root, ignore_errors=True)
        if created:
            # Fails where something was published, as it should.
            with suppress(OSError):
                repository.rmdir()


def commit(staged: Path, draft: Manifest, target: Target) -> Manifest:
    """Makes the files in `staged` version `target`: adds digests and manifest, flushes, renames.

    Returns the manifest as published. Raises `ExportError` where the version appeared meanwhile.
    """
    manifest = _write_manifest(staged, draft)
    root = staged.parent
    # A folder that holds anything is its owner's: nothing is added to it but the version.
    first = _is_absent_or_empty(target.model_folder)
    if first:
        (root / model_config.CONFIG_FILE).write_text(model_config.render(manifest), encoding="utf-8")
        if manifest.labels:
            shutil.copyfile(staged / manifest.labels, root / manifest.labels)
    _flush(root)
    with _alone(target.repository):
        # Again, now that nobody else can publish: another export may have come first since the work began.
        _refuse_taken(target)
        check_compatible(target, Contract(draft.input, draft.output, draft.preprocessing), draft.max_batch_size)
        if first:
            _rename(root, target.model_folder, target)
        else:
            _rename(staged, target.folder, target)
            _sync(target.model_folder)
        _sync(target.repository)
    return manifest


@contextmanager
def _alone(repository: Path) -> Iterator[None]:
    """Keeps other exports into the same repository out for the moment of publishing."""
    descriptor = os.open(repository, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _versions(model_folder: Path) -> list[int]:
    try:
        names = [path.name for path in model_folder.iterdir()]
    except FileNotFoundError:
        return []
    return sorted(int(name) for name in names if name.isascii() and name.isdecimal())


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
    config = model_config.read(target.model_folder)
    if config is None:
        return
    specs = [TensorSpec(info.name, info.datatype, (-1, *info.shape)) for info in (contract.input, contract.output)]
    settings = model_config.resolve(target.model, config, None, specs[:1], specs[1:])
    if settings.max_batch_size > max_batch_size:
        raise ExportError(
            f"{target.model}/{model_config.CONFIG_FILE} allows batches of {settings.max_batch_size}, "
            f"this export proves {max_batch_size}; pass --max-batch-size {settings.max_batch_size}"
        )


def _write_manifest(staged: Path, draft: Manifest) -> Manifest:
    files = {path.name: manifests.digest(path) for path in sorted(staged.iterdir())}
    manifest = dataclasses.replace(draft, files=files)
    text = manifests.to_json(manifest)
    # What the server would refuse must not be published.
    manifests.parse(text)
    (staged / MANIFEST_FILE).write_text(text, encoding="utf-8")
    return manifest


def _is_absent_or_empty(folder: Path) -> bool:
    return not folder.exists() or not any(folder.iterdir())


def _flush(root: Path) -> None:
    """Sets the modes below and of `root` and writes all of it to disk, folders after what they hold."""
    for folder, _, files in os.walk(root, topdown=False):
        for name in files:
            path = Path(folder, name)
            path.chmod(_FILE_MODE)
            _sync(path)
        Path(folder).chmod(_FOLDER_MODE)
        _sync(Path(folder))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rename(source: Path, destination: Path, target: Target) -> None:
    try:
        source.rename(destination)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise ExportError(
                f"{target.model} was published by someone else meanwhile; run the export again"
            ) from error
        raise
