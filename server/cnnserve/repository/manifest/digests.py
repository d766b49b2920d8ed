"""Compares the files of a version folder with the digests in its manifest."""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from cnnserve.errors import ModelLoadFailed
from cnnserve.repository import version_files
from cnnserve.repository.folders import ModelFolder
from cnnserve.repository.manifest.schema import FileDigest, Manifest
from cnnserve.repository.private_copy import PrivateCopy
from cnnserve.repository.version_files import VersionFiles


def digest(path: Path) -> FileDigest:
    """Returns SHA-256 and size of a file. Reads it in pieces, so its size does not matter."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return FileDigest(sha256, file.tell())


def verify_files(manifest: Manifest, folder: Path) -> None:
    """Compares every file of a version folder with its digest. Raises `ModelLoadFailed` with the first that differs."""
    with version_files.of(folder) as files:
        for name, expected in manifest.files.items():
            _require(_problem(name, expected, files.digest))


def verify(manifest: Manifest, files: VersionFiles) -> dict[str, PrivateCopy]:
    """Does the same, and returns private copies of the ONNX file and of all files that may hold its tensors.

    Labels and golden files, of which there are no copies, are those that `files.read` returns. The caller closes the
    copies.
    """
    copies: dict[str, PrivateCopy] = {}
    small = _small(manifest)

    def digest_of(name: str) -> tuple[str, int]:
        if name in small:
            return _read_digest(files, name)
        copies[name] = files.copy(name, manifest.files[name].bytes)
        return copies[name].sha256, copies[name].size

    try:
        for name, expected in manifest.files.items():
            _require(_problem(name, expected, digest_of))
    except BaseException:
        for copy in copies.values():
            copy.close()
        raise
    return copies


def read_again(manifest: Manifest, folder: ModelFolder, version: int, name: str) -> bytes:
    """Returns a small file of a version that is loaded. Raises `ModelLoadFailed` if it has changed since."""
    with VersionFiles(folder, version) as files:
        _require(_problem(name, manifest.files[name], partial(_read_digest, files)))
        return files.read(name)


def altered_files(manifest: Manifest, files: VersionFiles) -> dict[str, str]:
    """Returns the files that differ from the manifest: each name with what is wrong. Keeps files as `verify` does."""
    small = _small(manifest)

    def digest_of(name: str) -> tuple[str, int]:
        return _read_digest(files, name) if name in small else files.digest(name)

    problems = {name: _problem(name, expected, digest_of) for name, expected in manifest.files.items()}
    return {name: problem for name, problem in problems.items() if problem}


def _small(manifest: Manifest) -> set[str | None]:
    """Returns the files that are needed beside the model."""
    return {manifest.labels, manifest.golden.probabilities, *manifest.golden.images}


def _read_digest(files: VersionFiles, name: str) -> tuple[str, int]:
    data = files.read(name)
    return hashlib.sha256(data).hexdigest(), len(data)


def _require(problem: str | None) -> None:
    if problem:
        raise ModelLoadFailed(f"{problem}; copy or export the version again")


def _problem(name: str, expected: FileDigest, digest_of: Callable[[str], tuple[str, int]]) -> str | None:
    try:
        actual, size = digest_of(name)
    except FileNotFoundError:
        return f"file {name} is missing from the version folder"
    except ModelLoadFailed as error:
        return str(error)
    if size != expected.bytes:
        return f"file {name} has {size} bytes, the manifest says {expected.bytes}"
    if actual != expected.sha256:
        return f"file {name} was altered: SHA-256 {actual[:12]}…, expected {expected.sha256[:12]}…"
    return None
