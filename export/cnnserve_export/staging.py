"""The hidden folder that a version is made in, and what the disk may refuse.

It is locked for as long as its export lives. The kernel gives the lock back however a process ends, so a folder that
can be locked is what a killed export left, and the next export removes it.
"""

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cnnserve_export.errors import ExportError

# The server's scan passes over hidden folders.
PREFIX = ".publish-"
# Containers read the repository as another user, whatever the exporting user's umask.
_FILE_MODE, _FOLDER_MODE = 0o644, 0o755

_ELSEWHERE = "or choose another --repository"
_FIXES = {
    errno.ENOSPC: f"free space on its disk, {_ELSEWHERE}",
    errno.EDQUOT: f"free some of your quota, {_ELSEWHERE}",
    errno.EFBIG: f"raise the limit on the size of files (ulimit -f), {_ELSEWHERE}",
    errno.EACCES: f"get the right to write there, {_ELSEWHERE}",
    errno.EPERM: f"get the right to write there, {_ELSEWHERE}",
    errno.EROFS: "choose another --repository",
}


@contextmanager
def hidden_folder(repository: Path) -> Iterator[Path]:
    """A hidden folder in `repository`, which is made if it is not there; what dead exports left there is removed.

    At the end the folder is gone with all that is still in it, and so are folders that were made for it and are empty.
    What the disk refuses meanwhile is raised as `ExportError`.
    """
    with explained(repository):
        made = [path for path in (repository, *repository.parents) if not path.exists()]
        try:
            repository.mkdir(parents=True, exist_ok=True)
            for path in made:
                path.chmod(_FOLDER_MODE)
            with alone(repository):
                _sweep(repository)
                # Locked before anyone else may look for leftovers.
                root = Path(tempfile.mkdtemp(prefix=PREFIX, dir=repository))
                lock = _locked(root)
            try:
                yield root
            finally:
                shutil.rmtree(root, ignore_errors=True)
                os.close(lock)
        finally:
            for path in made:
                # Fails where something was published, as it should.
                with suppress(OSError):
                    path.rmdir()


@contextmanager
def explained(repository: Path) -> Iterator[None]:
    """What the disk refuses the repository, as an `ExportError` that says what to do."""
    try:
        yield
    except OSError as error:
        # Errors of decoders have no number, those of other files a name.
        foreign = error.filename is not None and not Path(os.fsdecode(error.filename)).is_relative_to(repository)
        if error.errno is None or foreign:
            raise
        fix = _FIXES.get(error.errno)
        reason = f"{os.strerror(error.errno)}; {fix}" if fix else os.strerror(error.errno)
        raise ExportError(f"the repository {repository} cannot be written: {reason}") from error


@contextmanager
def alone(repository: Path) -> Iterator[None]:
    """Keeps other exports into the same repository out for a moment."""
    descriptor = os.open(repository, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def flush(root: Path) -> None:
    """Sets the modes below and of `root` and writes all of it to disk, folders after what they hold."""
    for folder, _, files in os.walk(root, topdown=False):
        for name in files:
            path = Path(folder, name)
            path.chmod(_FILE_MODE)
            sync(path)
        Path(folder).chmod(_FOLDER_MODE)
        sync(Path(folder))


def sync(path: Path) -> None:
    """Writes a file or a folder's names to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sweep(repository: Path) -> None:
    for path in repository.glob(f"{PREFIX}*"):
        # One that is locked is being filled; one that cannot be removed is another user's and hinders nobody.
        with suppress(OSError):
            lock = _locked(path)
            try:
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)


def _locked(folder: Path) -> int:
    """The descriptor that holds the folder's lock. Raises `BlockingIOError` where someone else holds it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
