"""Compares the files of a version folder with the digests in its manifest."""

import hashlib
from pathlib import Path

from cnnserve.errors import ModelLoadFailed, reason
from cnnserve.repository.manifest.schema import FileDigest, Manifest


def digest(path: Path) -> FileDigest:
    """Returns SHA-256 and size of a file. Reads it in pieces, so its size does not matter."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return FileDigest(sha256, file.tell())


def verify_files(manifest: Manifest, folder: Path) -> None:
    """Compares every file with its digest. Raises `ModelLoadFailed` with the first file that differs."""
    for name, expected in manifest.files.items():
        if problem := _problem(folder / name, expected):
            raise ModelLoadFailed(f"{problem}; copy or export the version again")


def altered_files(manifest: Manifest, folder: Path) -> dict[str, str]:
    """Returns the files that differ from the manifest: each name with what is wrong."""
    problems = {name: _problem(folder / name, expected) for name, expected in manifest.files.items()}
    return {name: problem for name, problem in problems.items() if problem}


def _problem(path: Path, expected: FileDigest) -> str | None:
    try:
        if not path.is_file():
            return f"file {path.name} is missing from the version folder"
        size = path.stat().st_size
        if size != expected.bytes:
            return f"file {path.name} has {size} bytes, the manifest says {expected.bytes}"
        actual = digest(path).sha256
    except OSError as error:
        return f"file {path.name} cannot be read: {reason(error)}"
    if actual != expected.sha256:
        return f"file {path.name} was altered: SHA-256 {actual[:12]}…, expected {expected.sha256[:12]}…"
    return None
