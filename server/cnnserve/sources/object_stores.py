"""Reads object stores through fsspec, whose packages find the credentials. The only module that imports fsspec."""

import contextlib
from collections.abc import Iterator
from typing import Any

from cnnserve import extras
from cnnserve.sources.errors import NotFound, SourceError
from cnnserve.sources.room import Reads
from cnnserve.sources.stores import DEEPEST, bounded

# Scheme, and the package that reads it.
SCHEMES = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs", "hf": "huggingface_hub"}


class ObjectStore:
    """A folder or a file in an object store. Raises `SourceError` if the package for it is missing."""

    def __init__(self, address: str) -> None:
        self._address = address
        scheme = address.partition("://")[0]
        try:
            import fsspec  # noqa: PLC0415  (only those who name an object store need it)

            with self._explained(address):
                # Typed nowhere.
                self._files: Any = fsspec.filesystem(scheme, skip_instance_cache=True)
                self._root = str(self._files._strip_protocol(address)).rstrip("/")  # noqa: SLF001  (as fsspec's own)
        except ImportError as error:
            missing = error.name or SCHEMES[scheme]
            raise SourceError(
                f"{scheme}:// needs {missing}, which is not installed: {extras.install('remote')}"
            ) from error

    @contextlib.contextmanager
    def open(self, path: str) -> Iterator[Reads]:
        """Opens a file; "": the one that the address names. Raises `NotFound` and `SourceError`."""
        with self._explained(self._shown(path)):
            file = self._files.open(self._path(path), "rb")
        with contextlib.closing(file):
            yield _File(file, self, self._shown(path))

    def has(self, path: str) -> bool:
        """Returns whether there is such a file. Raises `SourceError`."""
        with self._explained(self._shown(path)):
            return bool(self._files.exists(self._path(path)))

    def files(self) -> dict[str, int]:
        """Returns the files that are not hidden, with their sizes in bytes. Raises `SourceError`."""
        with self._explained(self._address):
            return bounded(self._walk(), self._address)

    def _walk(self) -> Iterator[tuple[str, int]]:
        for folder, folders, files in self._files.walk(self._root, maxdepth=DEEPEST, detail=True, on_error="raise"):
            below = str(folder)[len(self._root) :].strip("/")
            for name in [name for name in folders if name.startswith(".")]:
                # `walk` does not go into what is missing here.
                del folders[name]
            for name, info in files.items():
                # A name of nothing marks a folder.
                if name and not name.startswith("."):
                    yield f"{below}/{name}" if below else name, int(info["size"])

    def _path(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    def _shown(self, path: str) -> str:
        return f"{self._address.rstrip('/')}/{path}" if path else self._address

    @contextlib.contextmanager
    def _explained(self, address: str) -> Iterator[None]:
        try:
            yield
        except (SourceError, ImportError):
            raise
        except FileNotFoundError as error:
            # Some stores, such as hf://, also say so of what is private.
            raise NotFound(
                f"{address} does not exist; correct the address, or set the credentials if it is private"
            ) from error
        # Each package has errors of its own, which have no base in common.
        except Exception as error:
            text = " ".join(str(error).split())[:300] or "no reason given"
            raise SourceError(
                f"{address} cannot be read: {type(error).__name__}: {text}; check the address and the credentials"
            ) from error


class _File:
    def __init__(self, file: Any, store: ObjectStore, address: str) -> None:
        self._file = file
        self._store = store
        self._address = address

    def read(self, size: int, /) -> bytes:
        """Returns the next bytes. Raises `SourceError`."""
        with self._store._explained(self._address):  # noqa: SLF001  (its own file)
            return bytes(self._file.read(size))
