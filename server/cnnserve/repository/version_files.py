"""The files of one version while it is loaded: each is opened and read once, so what was hashed is what is used.

Every reader of a version folder takes the files from here: the load, `cnnserve show`, `copy` and `upgrade`.
"""

import contextlib
import dataclasses
import hashlib
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from cnnserve.errors import ModelLoadFailed, reason
from cnnserve.repository import folders
from cnnserve.repository.folders import Fingerprint, ModelFolder, version_number
from cnnserve.repository.private_copy import PrivateCopy
from cnnserve.repository.signature import Signed
from cnnserve.repository.signed_tree import SignedTree


class VersionFiles:
    """The files of a version, by their names in its folder, and those of its model. Close them, or use `with`.

    `shared` has the files in the model's folder. If the folder has trusted keys, all that is read must be signed, and
    `signed` says what was signed in the version's folder. Methods raise `FileNotFoundError` for a file that does not
    exist, and `ModelLoadFailed` for one that cannot be read. The constructor raises `ModelLoadFailed`.
    """

    def __init__(self, folder: ModelFolder, version: int) -> None:
        self.folder = folder
        self.version = version
        try:
            self.shared = folder.open()
        except OSError as error:
            raise ModelLoadFailed(f"the folder of the model cannot be read: {reason(error)}") from error
        self.signed: Signed | None = None
        if isinstance(self.shared, SignedTree):
            try:
                self.signed = self.shared.signed(folder.place(version))
            except BaseException:
                self.close()
                raise
        self._scanned = folders.fingerprint(folder, version, self.shared)
        self._contents: dict[str, bytes] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the folders. `read` still returns what it has read before."""
        self.shared.close()

    @property
    def fingerprint(self) -> Fingerprint:
        """The fingerprint of the files that were read, as they were then, and of all others, as they were before."""
        opened = {path: folders.file_stat(path, state) for path, state in self.shared.opened.items()}
        own = tuple(opened.get(file[0], file) for file in self._scanned.own)
        shared = tuple(opened.get(file[0], file) for file in self._scanned.shared)
        return dataclasses.replace(self._scanned, own=own, shared=shared)

    def names(self) -> list[str]:
        """Returns the names in the version's folder, sorted."""
        return self.shared.names(self._path(""))

    def has(self, name: str) -> bool:
        """Returns whether there is anything of this name: also a link to nothing."""
        return self.shared.has(self._path(name))

    def is_folder(self, name: str) -> bool:
        """Returns whether a name is that of a folder."""
        try:
            return stat.S_ISDIR(self.shared.stat(self._path(name)).st_mode)
        except FileNotFoundError:
            return False

    def size(self, name: str) -> int:
        """Returns the size of a file in bytes."""
        return self.shared.stat(self._path(name)).st_size

    def open(self, name: str) -> io.BufferedReader:
        """Opens a file. What is read from it counts for nothing else."""
        return self.shared.open(self._path(name))

    def read(self, name: str) -> bytes:
        """Returns a file's content. A file is read once and then kept."""
        if name not in self._contents:
            self._contents[name] = self.shared.read(self._path(name))
        return self._contents[name]

    def copy(self, name: str, stated: int | None = None) -> PrivateCopy:
        """Returns a private copy of a file, for a file that may be large. The caller closes it.

        `stated`: the size in the manifest, in bytes. Raises `ModelLoadFailed` also if the file has another one.
        """
        with self.open(name) as file, _explained(name):
            # Before anything is read: the file may be larger than the memory.
            if stated is not None and (size := os.fstat(file.fileno()).st_size) != stated:
                raise self._other_size(name, size, stated)
            copy = PrivateCopy(file, name)
        try:
            self._check(name, copy.sha256)
        except ModelLoadFailed:
            copy.close()
            raise
        return copy

    def digest(self, name: str) -> tuple[str, int]:
        """Returns SHA-256 (hexadecimal digits) and size (bytes) of a file, which is read for this only."""
        with self.open(name) as file, _explained(name):
            sha256, size = hashlib.file_digest(file, "sha256").hexdigest(), file.tell()
        self._check(name, sha256)
        return sha256, size

    def check_others(self) -> None:
        """Compares the signed files of the version that nothing has read with their signature, if there is one."""
        if isinstance(self.shared, SignedTree):
            self.shared.check_others(self.folder.place(self.version))

    def _check(self, name: str, sha256: str) -> None:
        if isinstance(self.shared, SignedTree):
            self.shared.check(self._path(name), sha256)

    def _other_size(self, name: str, size: int, stated: int) -> ModelLoadFailed:
        if self.signed is None:
            return ModelLoadFailed(f"file {name} has {size} bytes, the manifest says {stated}")
        return ModelLoadFailed(
            f"file {name} is not the one that was signed: it has {size} bytes, the signed manifest says {stated}; put "
            "the signed file back, or, if the change is yours, publish a new version and sign it"
        )

    def _path(self, name: str) -> str:
        place = self.folder.place(self.version)
        return f"{place}/{name}" if place else name


def of(path: Path) -> VersionFiles:
    """Returns the files of a version folder. Raises `ModelLoadFailed`.

    If the name of the folder is a number, links may lead to other places in the folder above it.
    """
    number = version_number(path.name)
    if number is not None:
        return VersionFiles(ModelFolder(path.parent.name, path.parent, {number: path}), number)
    return VersionFiles(ModelFolder(path.name, path, {1: path}), 1)


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ModelLoadFailed(f"file {name} cannot be read: {reason(error)}") from error
