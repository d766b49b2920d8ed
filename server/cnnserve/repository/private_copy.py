"""Copies a file into memory that nobody else can change, and hashes the same bytes.

An open file is no private copy: whoever may write it can change it after it was hashed.
"""

import contextlib
import fcntl
import hashlib
import io
import mmap
import os

from cnnserve.errors import ModelLoadFailed

# After each call on a chunk, a load waits for the GIL, which other threads of a start have: small chunks cost time.
_CHUNK = 1 << 20


class PrivateCopy:
    """The bytes of a file: in a sealed memfd or, if the system has none, in anonymous memory. Close it.

    `name`: that of the file, for errors. `size` is in bytes, `sha256` has hexadecimal digits. Raises `OSError`, and
    `ModelLoadFailed` if the size of the file changes while it is read.
    """

    def __init__(self, file: io.BufferedReader, name: str, *, memfd: bool = hasattr(os, "memfd_create")) -> None:
        self.name = name
        self.size = os.fstat(file.fileno()).st_size
        self._memory = _new_memory() if memfd else None
        self._map = mmap.mmap(-1, self.size) if self._memory is None and self.size else None
        try:
            self.sha256 = self._fill(file)
            if self._memory is not None:
                _seal(self._memory)
        except BaseException:
            self.close()
            raise

    @property
    def path(self) -> str | None:
        """A path of the copy that is valid in this process until `close`; None if there is none."""
        return None if self._memory is None else f"/proc/self/fd/{self._memory}"

    def open(self) -> io.BufferedReader:
        """Opens the copy for reading."""
        if self.path is not None:
            return open(self.path, "rb")  # noqa: PTH123  (the caller closes it)
        return io.BufferedReader(io.BytesIO(self.data()))

    def data(self) -> bytes:
        """Returns a further copy of the bytes."""
        return bytes(self.view())

    def view(self) -> memoryview:
        """Returns the bytes themselves, for reading."""
        if self._map is None and self._memory is not None and self.size:
            # Before Linux 6.7, a sealed memfd cannot be mapped as shared. A private mapping has the same pages.
            self._map = mmap.mmap(self._memory, self.size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
        return memoryview(b"" if self._map is None else self._map).toreadonly()

    def close(self) -> None:
        """Frees the memory, as soon as no view of it is in use. Sessions that were made of the copy do not need it."""
        if self._map is not None:
            with contextlib.suppress(BufferError):
                self._map.close()
            self._map = None
        if self._memory is not None:
            os.close(self._memory)
            self._memory = None

    def _fill(self, file: io.BufferedReader) -> str:
        """Copies the file and returns its SHA-256."""
        sha256, chunk, done = hashlib.sha256(), memoryview(bytearray(_CHUNK)), 0
        while count := file.readinto(chunk):
            part = chunk[:count]
            done += count
            if done > self.size:
                break
            sha256.update(part)
            if self._memory is not None:
                _write(self._memory, part)
            elif self._map is not None:
                self._map[done - count : done] = part
        if done != self.size:
            raise ModelLoadFailed(f"file {self.name} was written while it was read; load the version again")
        return sha256.hexdigest()


def _new_memory() -> int | None:
    if not os.path.isdir("/proc/self/fd"):  # noqa: PTH112
        # Without a path, nothing could load it.
        return None
    with contextlib.suppress(OSError):
        # A container may forbid the call.
        return os.memfd_create("cnnserve", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    return None


def _seal(memory: int) -> None:
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, seals)


def _write(memory: int, part: memoryview) -> None:
    while part:
        part = part[os.write(memory, part) :]
