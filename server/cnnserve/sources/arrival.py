"""What a pull has fetched, put into the order of a model repository, checked, and published."""

import dataclasses
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cnnserve.errors import ModelLoadFailed
from cnnserve.repository import folders, staging
from cnnserve.repository import manifest as manifests
from cnnserve.repository.folders import MANIFEST_FILE, MODEL_NAME, ModelFolder, version_number
from cnnserve.repository.signature import Trust
from cnnserve.repository.verification import check_version
from cnnserve.sources.errors import SourceError


@dataclass(frozen=True)
class Arrived:
    """A version in the model repository. `new`: this pull has published it. `kept`: why files beside it are not new."""

    folder: Path
    new: bool
    kept: str = ""


def arrange(files: Path) -> None:
    """Makes the fetched files a model repository, if they are one version or one model. Raises `SourceError`."""
    if (files / MANIFEST_FILE).is_file():
        manifest = _manifest(files)
        _move_into(files, f"{manifest.model}/{manifest.version}")
        return
    versions = [child for child in files.iterdir() if version_number(child.name) and (child / MANIFEST_FILE).is_file()]
    if versions:
        _move_into(files, _manifest(versions[0]).model)


def check(files: Path, trust: Trust | None) -> list[ModelFolder]:
    """Returns the models that were fetched, after the digests of all versions were compared.

    With `trust`, all that lies in and beside the versions must be signed. Raises `SourceError`.
    """
    models = []
    for path in sorted(files.iterdir()):
        if not path.is_dir() or not MODEL_NAME.fullmatch(path.name):
            raise SourceError(
                f"the source has {path.name!r}, which is no folder of a model; make it with cnnserve pack"
            )
        model = folders.model_folder(path)
        if not model.versions or model.mounted:
            raise SourceError(f"the source has no version of model {path.name}; make it with cnnserve pack")
        models.append(dataclasses.replace(model, trust=trust))
    if not models:
        raise SourceError("the source has no files; make it with cnnserve pack")
    for model in models:
        for version in model.versions:
            try:
                check_version(model, version)
            except ModelLoadFailed as error:
                raise SourceError(f"model {model.name} version {version}: {error}") from error
    return models


def publish(models: list[ModelFolder], repository: Path) -> list[Arrived]:
    """Moves checked models into a repository by one rename each, or by one for each version if the model is there.

    The caller has locked the repository and flushed the files. Raises `SourceError` before anything is published if a
    version is there with other content.
    """
    first = [model for model in models if _is_absent_or_empty(repository / model.name)]
    for model in models:
        if model not in first:
            _refuse_others(model, repository / model.name)
    arrived = []
    for model in models:
        target = repository / model.name
        if model in first:
            _rename(model.path, target)
            arrived += [Arrived(target / str(version), new=True) for version in model.versions]
        else:
            arrived += list(_add(model, target))
    staging.sync(repository)
    return arrived


def _add(model: ModelFolder, target: Path) -> Iterator[Arrived]:
    kept = ""
    if any(digest != _digest(target / path) for path, digest in _digests(model.path, versions=False).items()):
        kept = f"the files beside the versions of {target} stay as they are; those of the source differ"
    for version, path in model.versions.items():
        place = target / str(version)
        new = not place.exists()
        if new:
            _rename(path, place)
        yield Arrived(place, new, kept)
    staging.sync(target)


def _refuse_others(model: ModelFolder, target: Path) -> None:
    if not target.is_dir():
        raise SourceError(f"{target} is no folder; remove it, or choose another --repository")
    for version, path in model.versions.items():
        place = target / str(version)
        if os.path.lexists(place) and _digests(place) != _digests(path):
            raise SourceError(
                f"{place} exists with other content, and a published version never changes; choose another "
                "--repository, or publish the new content as another version"
            )


def _manifest(folder: Path) -> manifests.Manifest:
    try:
        found = manifests.read(folder)
    except ModelLoadFailed as error:
        raise SourceError(f"the version that was fetched: {error}") from error
    assert found is not None
    return found


def _move_into(files: Path, place: str) -> None:
    """Moves all that is in `files` into a new folder `place` in it."""
    aside = files.with_name("aside")
    files.rename(aside)
    (files / place).parent.mkdir(parents=True)
    aside.rename(files / place)


def _is_absent_or_empty(folder: Path) -> bool:
    return not os.path.lexists(folder) or (folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()))


def _digests(folder: Path, *, versions: bool = True) -> dict[str, str]:
    """Returns the SHA-256 of each file that is not hidden; without `versions`, not those in folders of versions."""
    found = {}
    for above, names, files in os.walk(folder):
        names[:] = [name for name in names if not name.startswith(".") and (versions or not version_number(name))]
        for path in (Path(above, name) for name in files if not name.startswith(".")):
            found[str(path.relative_to(folder))] = _digest(path)
    return found


def _digest(path: Path) -> str:
    try:
        return manifests.digest(path).sha256
    except FileNotFoundError:
        return ""


def _rename(path: Path, place: Path) -> None:
    try:
        path.rename(place)
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise SourceError(
                f"{place.parent} is on another file system than the repository, so one rename cannot publish a version "
                "there; move the folder into the repository"
            ) from error
        raise
