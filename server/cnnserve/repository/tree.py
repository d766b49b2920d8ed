"""Opens the files below one folder through descriptors, so that nobody can exchange a folder or a link meanwhile.

A link is read once, and what it led to then counts. So the files behind a ConfigMap's link `..data` are all of one
state, even if the link is replaced between two of them. A link may not lead out of the folder.
"""

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from cnnserve.errors import ModelLoadFailed, reason

# The largest file that is read as a whole (bytes): labels, golden images, warm-up data. A manifest has less.
LARGEST_READ = 256 << 20
_MOST_LINKS = 40
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Without O_NONBLOCK, opening a pipe would wait for a writer.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


class Tree:
    """The files below `root`, named by their paths relative to it. Close it, or use it in a `with` statement.

    Its methods raise `FileNotFoundError` if a path does not exist, and `ModelLoadFailed`, which names the path, if a
    link leads out of `root`, if there is no regular file, or if the file cannot be read. The constructor raises
    `OSError`.
    """

    def __init__(self, root: Path) -> None:
        real = os.path.realpath(root)
        # Absolute links may name the root by either path.
        self._roots = (real, os.path.abspath(root))  # noqa: PTH100  (links in the path must remain)
        self._root = os.open(real, _FOLDER)
        # The state of each file when it was opened first.
        self.opened: dict[str, os.stat_result] = {}
        self._links: dict[tuple[int, str], str | None] = {}
        self._folders: dict[tuple[int, str], int] = {}
        # A folder is listed once, too: what was absent at first stays absent.
        self._names: dict[str, list[str]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes all descriptors of folders."""
        for descriptor in (*self._folders.values(), self._root):
            os.close(descriptor)
        self._folders.clear()

    def names(self, path: str) -> list[str]:
        """Returns the names in a folder, sorted."""
        if path not in self._names:
            with self._explained(path):
                folder, name = self._find(path)
                inside = folder if name == "." else self._open_folder(folder, name)
                self._names[path] = sorted(os.listdir(inside))  # noqa: PTH208
        return self._names[path]

    def has(self, path: str) -> bool:
        """Returns whether there is anything at a path: also a link to nothing."""
        above, _, name = path.rpartition("/")
        try:
            return name in self.names(above)
        except FileNotFoundError:
            return False

    def stat(self, path: str) -> os.stat_result:
        """Returns the state of a file or a folder, behind its links."""
        with self._explained(path):
            folder, name = self._find(path)
            return os.stat(name, dir_fd=folder, follow_symlinks=False)

    def open(self, path: str) -> io.BufferedReader:
        """Opens a regular file."""
        with self._explained(path):
            folder, name = self._find(path)
            descriptor = os.open(name, _FILE, dir_fd=folder)
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode):
            os.close(descriptor)
            what = _KINDS.get(stat.S_IFMT(state.st_mode), "something else")
            raise ModelLoadFailed(f"{path} is not a file but {what}; put the file itself there")
        self.opened.setdefault(path, state)
        return os.fdopen(descriptor, "rb")

    def read(self, path: str, limit: int = LARGEST_READ) -> bytes:
        """Returns the content of a regular file of at most `limit` bytes."""
        with self.open(path) as file, self._explained(path):
            data = file.read(limit + 1)
        if len(data) > limit:
            raise ModelLoadFailed(f"{path} has more than {limit >> 20} MiB, the limit for such a file")
        return data

    def _find(self, path: str) -> tuple[int, str]:
        """Returns the folder that contains what is at a path, behind all links, and its name there; "." for a root."""
        inside = self._below_root(path, path) if path.startswith("/") else path
        chain, parts, links = [self._root], inside.split("/")[::-1], 0
        while parts:
            part = parts.pop()
            if part == "..":
                if len(chain) == 1:
                    raise _outside(path)
                chain.pop()
            elif part in ("", "."):
                continue
            elif (target := self._link(chain[-1], part)) is not None:
                links += 1
                if links > _MOST_LINKS:
                    raise ModelLoadFailed(f"{path} leads through more than {_MOST_LINKS} links; put the file there")
                if target.startswith("/"):
                    target, chain = self._below_root(target, path), [self._root]
                parts += target.split("/")[::-1]
            elif any(part not in ("", ".") for part in parts):
                chain.append(self._open_folder(chain[-1], part))
            else:
                return chain[-1], part
        return chain[-1], "."

    def _link(self, folder: int, name: str) -> str | None:
        """Returns the target of a link; None if there is no link."""
        if (folder, name) not in self._links:
            mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
            self._links[folder, name] = os.readlink(name, dir_fd=folder) if stat.S_ISLNK(mode) else None
        return self._links[folder, name]

    def _open_folder(self, parent: int, name: str) -> int:
        if (parent, name) not in self._folders:
            self._folders[parent, name] = os.open(name, _FOLDER, dir_fd=parent)
        return self._folders[parent, name]

    def _below_root(self, target: str, path: str) -> str:
        for root in self._roots:
            if target == root or target.startswith(root + "/"):
                return target[len(root) :]
        raise _outside(path)

    @contextmanager
    def _explained(self, path: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, NotADirectoryError) as error:
            raise FileNotFoundError(error.errno, error.strerror, path) from error
        except (OSError, ValueError) as error:
            # A name with a null character is a ValueError.
            raise ModelLoadFailed(
                f"{path} cannot be read: {reason(error) if isinstance(error, OSError) else error}"
            ) from error


def _outside(path: str) -> ModelLoadFailed:
    return ModelLoadFailed(f"{path} leads out of the model's folder; put the file itself there")
