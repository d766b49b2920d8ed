"""Where files are: a folder of this machine, or a web server. Object stores have a module of their own."""

import contextlib
import itertools
import stat
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from cnnserve.errors import ModelLoadFailed, reason
from cnnserve.repository.tree import Tree
from cnnserve.sources import credentials
from cnnserve.sources.errors import NotFound, SourceError
from cnnserve.sources.room import MOST_FILES, Reads
from cnnserve.sources.web import Unauthorized, Web, host, shown

# MODEL/VERSION/FILE, and one folder more.
DEEPEST = 4


class Opens(Protocol):
    """A folder whose files can be read by their paths in it."""

    def open(self, path: str) -> contextlib.AbstractContextManager[Reads]:
        """Opens a file. Raises `NotFound`, and `SourceError` if it cannot be read."""


class Store(Opens, Protocol):
    """A folder that also knows which files it has."""

    def has(self, path: str) -> bool:
        """Returns whether there is such a file. Raises `SourceError`."""

    def files(self) -> dict[str, int]:
        """Returns the files that are not hidden, with their sizes in bytes. Raises `SourceError`."""


class Folder:
    """A folder of this machine. Links count as long as they lead to places inside of it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._tree = Tree(path)
        except OSError as error:
            raise SourceError(f"the folder {path} cannot be read: {reason(error)}; correct the path") from error
        # Its descriptors. A server that pulls before it serves would keep them.
        weakref.finalize(self, self._tree.close)

    @contextlib.contextmanager
    def open(self, path: str) -> Iterator[Reads]:
        """Opens a file. Raises `NotFound`, and `SourceError` if it cannot be read."""
        try:
            file = self._tree.open(path)
        except FileNotFoundError as error:
            raise NotFound(f"{self._path / path} does not exist; get the pack again") from error
        except ModelLoadFailed as error:
            raise SourceError(f"{self._path}: {error}") from error
        with file:
            yield file

    def has(self, path: str) -> bool:
        """Returns whether there is such a file."""
        return self._tree.has(path)

    def files(self) -> dict[str, int]:
        """Returns the files that are not hidden, with their sizes in bytes. Raises `SourceError`."""
        try:
            return bounded(self._walk("", DEEPEST), str(self._path))
        except (OSError, ModelLoadFailed) as error:
            raise SourceError(f"the folder {self._path} cannot be read: {error}") from error

    def _walk(self, folder: str, depth: int) -> Iterator[tuple[str, int]]:
        names = [name for name in self._tree.names(folder) if not name.startswith(".")]
        for path in (f"{folder}/{name}" if folder else name for name in names):
            state = self._tree.stat(path)
            if not stat.S_ISDIR(state.st_mode):
                yield path, state.st_size
            elif depth > 1:
                yield from self._walk(path, depth - 1)


class WebFolder:
    """A layout on a web server, which has no list of its files."""

    def __init__(self, url: str, web: Web) -> None:
        self._url = url.rstrip("/")
        self._web = web

    @contextlib.contextmanager
    def open(self, path: str) -> Iterator[Reads]:
        """Opens a file. Raises `NotFound`, and `SourceError` if it cannot be read."""
        with open_web(f"{self._url}/{path}", self._web) as body:
            yield body


@contextlib.contextmanager
def open_web(url: str, web: Web) -> Iterator[Reads]:
    """Opens a file of a web server, with the login that netrc has for it. Raises `NotFound` and `SourceError`."""
    name = host(url)
    login = credentials.of_web_server(name.partition(":")[0])
    try:
        body = web.get(url, authorization=login.basic if login else "")
    except Unauthorized as error:
        advice = "correct its entry in ~/.netrc" if login else f"put a login for {name} into ~/.netrc"
        raise SourceError(f"{shown(url)} wants a user name and a password (status 401); {advice}") from error
    with body:
        yield body


def bounded(files: Iterable[tuple[str, int]], name: str) -> dict[str, int]:
    """Returns the paths and sizes of files. Raises `SourceError` if there are too many."""
    found = dict(itertools.islice(files, MOST_FILES + 1))
    if len(found) > MOST_FILES:
        raise SourceError(
            f"{name} has more than {MOST_FILES} files, the limit; give the address of one model or version"
        )
    return found
