"""The hidden folder in which a version is made or fetched, and errors of the disk.

Who publishes locks the folder. The kernel releases the lock whatever ends the process, so a folder that another process
can lock was left by one that was killed, and the next one removes it.

Some file systems (of networks, in user space) cannot lock, flush a folder, or set modes. Exports and pulls work there,
too, and warn of what is not guaranteed.
"""

import errno
import fcntl
import functools
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_log = logging.getLogger(__name__)

# A file system that lacks an operation gives one of these. NFS locks only files that are open for writing: EBADF.
_LACKING = {errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOLCK, errno.EBADF, errno.ENOTTY}
_NO_LOCKS = (
    "the file system of %s cannot lock: of exports or pulls at the same time, some may fail with 'somebody else "
    "published', and hidden folders .publish-* or .pull-* of those that were killed stay; remove them by hand"
)
_NO_FLUSH = "the file system of %s cannot flush: the version may be lost if the machine or the network fails now"
_NO_MODES = "the file system of %s cannot set modes: check that the user of the server may read the version"
# The server ignores hidden folders.
EXPORTS, PULLS = ".publish-", ".pull-"
# Containers read the repository as another user, so the umask of the publishing user must not matter.
_FILE_MODE, _FOLDER_MODE = 0o644, 0o755

# Before the advice to choose another folder.
_FIXES = {
    errno.ENOSPC: "free space on the disk, or ",
    errno.EDQUOT: "free some of your quota, or ",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), or ",
    errno.EACCES: "get permission to write there, or ",
    errno.EPERM: "get permission to write there, or ",
    errno.EROFS: "",
}


@contextmanager
def hidden_folder(repository: Path, prefix: str, error: type[Exception], flag: str = "--repository") -> Iterator[Path]:
    """Yields a new hidden folder in `repository`; makes the repository if it is missing.

    `prefix`: `EXPORTS` or `PULLS`. First it removes the hidden folders with this prefix that killed processes have
    left. At the end it removes the folder with all files that are still in it, and the empty folders that it made.
    Raises errors of the disk as `error`; `flag` chooses another repository.
    """
    with explained(repository, error, flag):
        made = [path for path in (repository, *repository.parents) if not path.exists()]
        try:
            repository.mkdir(parents=True, exist_ok=True)
            for path in made:
                _set_mode(path, _FOLDER_MODE)
            with alone(repository):
                if _can_lock(repository):
                    _sweep(repository, prefix)
                # Locked at once: without the lock, the next process would remove the folder.
                root = Path(tempfile.mkdtemp(prefix=prefix, dir=repository))
                lock = _locked(root)
            try:
                yield root
            finally:
                shutil.rmtree(root, ignore_errors=True)
                os.close(lock)
        finally:
            for path in made:
                # Fails if something was published, as it should.
                with suppress(OSError):
                    path.rmdir()


@contextmanager
def explained(repository: Path, error: type[Exception], flag: str = "--repository") -> Iterator[None]:
    """Raises errors of the disk in `repository` as an `error` that says what to do, as `hidden_folder` does."""
    try:
        yield
    except OSError as problem:
        # Errors of image decoders have no number; errors of other files name a path outside.
        foreign = problem.filename is not None and not Path(os.fsdecode(problem.filename)).is_relative_to(repository)
        if problem.errno is None or foreign:
            raise
        fix = _FIXES.get(problem.errno)
        advice = "" if fix is None else f"; {fix}choose another {flag}"
        reason = f"{os.strerror(problem.errno)}{advice}"
        raise error(f"the repository {repository} cannot be written: {reason}") from problem


@contextmanager
def alone(repository: Path) -> Iterator[None]:
    """Makes others that publish into the same repository wait while the block runs."""
    descriptor = os.open(repository, os.O_RDONLY)
    try:
        _lock(descriptor, fcntl.LOCK_EX, repository)
        yield
    finally:
        os.close(descriptor)


def flush(root: Path) -> None:
    """Sets the modes of `root` and all that is in it, and flushes it to disk, each folder after its content."""
    for folder, _, files in os.walk(root, topdown=False):
        for name in files:
            path = Path(folder, name)
            _set_mode(path, _FILE_MODE)
            sync(path)
        _set_mode(Path(folder), _FOLDER_MODE)
        sync(Path(folder))


def replace_file(path: Path, data: bytes, mode: int = _FILE_MODE) -> None:
    """Puts `data` in the place of a file by one rename: nobody sees a part of it. Raises `OSError`."""
    # Servers ignore hidden files.
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    partial = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        _set_mode(partial, mode)
        sync(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync(path.parent)


def sync(path: Path) -> None:
    """Flushes a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _LACKING:
            raise
        _warn(_NO_FLUSH, path)
    finally:
        os.close(descriptor)


def _set_mode(path: Path, mode: int) -> None:
    try:
        path.chmod(mode)
    except OSError as error:
        if error.errno not in {*_LACKING, errno.EPERM}:
            raise
        # Many such file systems give every file a mode with which it can be read.
        if stat.S_IMODE(path.stat().st_mode) & mode != mode:
            _warn(_NO_MODES, path)


def _lock(descriptor: int, operation: int, path: Path) -> None:
    """Locks an open file if the file system can. Raises `BlockingIOError` if another process holds the lock."""
    try:
        fcntl.flock(descriptor, operation)
    except OSError as error:
        if error.errno not in _LACKING:
            raise
        _warn(_NO_LOCKS, path)


def _can_lock(folder: Path) -> bool:
    """Returns whether the file system of a folder can lock: otherwise no lock shows that a process still runs."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _LACKING
    finally:
        os.close(descriptor)
    return True


def _warn(text: str, path: Path) -> None:
    # A name that the user knows: hidden folders are gone soon.
    hidden = (EXPORTS, PULLS)
    shown = next((parent.parent for parent in (path, *path.parents) if parent.name.startswith(hidden)), path)
    _warn_once(text, shown)


@functools.cache
def _warn_once(text: str, path: Path) -> None:
    _log.warning(f"warning: {text}", path)


def _sweep(repository: Path, prefix: str) -> None:
    for path in repository.glob(f"{prefix}*"):
        # A locked folder is in use. A folder that cannot be removed belongs to another user and does no harm.
        with suppress(OSError):
            lock = _locked(path)
            try:
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)


def _locked(folder: Path) -> int:
    """Returns the descriptor that holds the folder's lock. Raises `BlockingIOError` if another process holds it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, folder)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
