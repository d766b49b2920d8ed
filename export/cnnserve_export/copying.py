"""`cnnserve copy` and `cnnserve upgrade`: a published version, published again with a manifest of its own.

The files stay as they are. The new manifest has the new name and number, schema 2, and the version's origin. A version
of schema 1 has to pass the self-test of the server with the tolerances of schema 2, which needs ONNX Runtime.
"""

import dataclasses
import hashlib
import os
import shutil
from pathlib import Path

from cnnserve.errors import ModelLoadFailed
from cnnserve.repository import manifest as manifests
from cnnserve.repository import version_files
from cnnserve.repository.folders import model_folder, named, scan, version_number
from cnnserve.repository.manifest import (
    LOG_TOLERANCES,
    MANIFEST_FILE,
    PROBABILITIES_FILE,
    SCHEMA,
    Golden,
    Manifest,
    Origin,
)
from cnnserve.repository.version_files import VersionFiles
from cnnserve_export import publish
from cnnserve_export.contract import Contract
from cnnserve_export.errors import ExportError
from cnnserve_export.publish import Signs, Target

_CHUNK = 1 << 20


def copy(source: Path, to: Path, signer: Signs | None = None) -> Path:
    """Publishes a copy of a version and returns its folder.

    `source`: a version folder, or a model folder for its newest version. `to`: a model folder for its next version, or
    a version folder. Raises `ExportError` or cnnserve's `ModelLoadFailed`; nothing was published then.
    """
    with version_files.of(_version(source)) as files:
        return _publish(files, _manifest(files), _target(to), signer)


def upgrade(source: Path, signer: Signs | None = None) -> Path:
    """Publishes a version of schema 1 in schema 2, as the next version of its model, and returns the new folder.

    `source` as in `copy`. Raises `ExportError` or cnnserve's `ModelLoadFailed`; nothing was published then.
    """
    folder = _version(source)
    with version_files.of(folder) as files:
        manifest = _manifest(files)
        if manifest.schema == SCHEMA:
            raise ExportError(f"{folder} has contract {SCHEMA} already; there is nothing to upgrade")
        number = version_number(folder.name)
        if number is None:
            raise ExportError(
                f"{folder} is no version folder, which has a number as its name; use cnnserve copy PATH TO"
            )
        manifests.check_place(manifest, folder.parent.name, number)
        return _publish(files, manifest, publish.plan(folder.parent.parent, folder.parent.name), signer)


def _version(path: Path) -> Path:
    """Returns the folder of the version that a path of a version or of a model names."""
    folder = named(path)
    if not folder.is_dir():
        raise ExportError(f"{folder} has no {MANIFEST_FILE}; give the folder of a version that cnnserve published")
    versions = {} if os.path.lexists(folder / MANIFEST_FILE) else model_folder(folder).versions
    return versions[max(versions)] if versions else folder


def _manifest(files: VersionFiles) -> Manifest:
    manifest = manifests.read_from(files)
    if manifest is None:
        folder = files.folder.versions[files.version]
        raise ExportError(f"{folder} has no {MANIFEST_FILE}; give the folder of a version that cnnserve published")
    return manifest


def _target(to: Path) -> Target:
    folder = named(to)
    number = version_number(folder.name)
    model = folder.parent if number else folder
    if model.is_dir() and any(found.versions for found in scan(model)):
        raise ExportError(f"{model} is a model repository; give {model}/MODEL or {model}/MODEL/VERSION")
    return publish.plan(model.parent, model.name, number)


def _publish(files: VersionFiles, manifest: Manifest, target: Target, signer: Signs | None) -> Path:
    publish.check_compatible(
        target, Contract(manifest.input, manifest.output, manifest.preprocessing), manifest.max_batch_size
    )
    digest = hashlib.sha256(files.read(MANIFEST_FILE)).hexdigest()
    with publish.staging(target) as staged:
        for name in manifest.files:
            with files.open(name) as source, (staged / name).open("xb") as copied:
                shutil.copyfileobj(source, copied, _CHUNK)
        # The copies, so that no later change of the source can count.
        manifests.verify_files(manifest, staged)
        draft = dataclasses.replace(
            manifest,
            model=target.model,
            golden=_golden(manifest, staged),
            origin=Origin(manifest.model, manifest.version, digest),
            schema=SCHEMA,
        )
        if manifest.schema != SCHEMA:
            _prove(staged, draft)
        return publish.commit(staged, draft, target, signer)


def _prove(staged: Path, draft: Manifest) -> None:
    """Runs the server's self-test with the new manifest. Raises `ModelLoadFailed` if the version fails it."""
    from cnnserve_export import proof  # noqa: PLC0415

    try:
        proof.self_test(staged, draft)
    except ModelLoadFailed as error:
        raise ModelLoadFailed(
            f"the version does not pass the self-test of contract {SCHEMA}, so nothing was published: {error}"
        ) from error


def _golden(manifest: Manifest, staged: Path) -> Golden:
    """Returns the golden images in the form of schema 2, and writes the file of probabilities that schema 1 lacks."""
    golden = manifest.golden
    if golden.probabilities is not None:
        return golden
    with (staged / PROBABILITIES_FILE).open("xb") as file:
        file.write(golden.inline)
    log_tolerance = LOG_TOLERANCES[manifest.onnx.precision]
    return dataclasses.replace(golden, probabilities=PROBABILITIES_FILE, log_tolerance=log_tolerance, inline=b"")
