"""POSIX shared memory that clients on this machine register, so that their messages need not contain tensors.

If the server mapped a file and its owner truncated it, the next access would end the process. So the server maps
nothing: it copies bytes with `pread` and `pwrite`. An owner that changes a region in use can change values only.
"""

import contextlib
import os
import stat
import weakref
from collections.abc import Sequence
from pathlib import Path

from cnnserve.errors import AlreadyExists, InvalidInput, LimitReached, RegionNotFound, Unsupported

# Linux keeps the objects of shm_open here.
FOLDER = Path("/dev/shm")  # noqa: S108
_PERMIT = "; let the server's user {user} read and write it (chmod 666), or run client and server as the same user"
# Each region keeps a file open.
MAX_REGIONS = 256


class Region:
    """`byte_size` bytes from `offset` of a shared memory object, which stays open while the region is referenced."""

    def __init__(self, name: str, key: str, offset: int, byte_size: int, descriptor: int) -> None:
        self.name = name
        self.key = key
        self.offset = offset
        self.byte_size = byte_size
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)

    def check(self, offset: int, size: int) -> None:
        """Raises `InvalidInput` unless `size` bytes from `offset` lie within the region."""
        if offset < 0 or size < 0 or offset + size > self.byte_size:
            raise InvalidInput(
                f"shared memory region '{self.name}' has {self.byte_size} bytes, so {size} bytes from offset {offset} "
                "are outside it; register a larger region"
            )

    def read(self, offset: int, size: int) -> bytes:
        """Returns a copy of `size` bytes from `offset`. Raises `InvalidInput` if region or object are smaller."""
        self.check(offset, size)
        start = self.offset + offset
        data = os.pread(self._descriptor, size, start)
        # One call reads at most 2 GiB.
        while len(data) < size and (more := os.pread(self._descriptor, size - len(data), start + len(data))):
            data += more
        if len(data) < size:
            raise self._shrunk()
        return data

    def write(self, offset: int, data: bytes) -> None:
        """Copies `data` to `offset`. Raises `InvalidInput` if region or object are smaller."""
        self.check(offset, len(data))
        start = self.offset + offset
        # A write behind the end would enlarge the object again.
        if os.fstat(self._descriptor).st_size < start + len(data):
            raise self._shrunk()
        view = memoryview(data)
        while view:
            written = os.pwrite(self._descriptor, view, start)
            view, start = view[written:], start + written

    def _shrunk(self) -> InvalidInput:
        return InvalidInput(
            f"shared memory '{self.key}' was made smaller than region '{self.name}'; unregister the region and "
            "register it again"
        )


class SharedMemory:
    """The registered regions by name. A key must begin with one of `prefixes`; without any, shared memory is off."""

    def __init__(self, prefixes: Sequence[str] = (), folder: Path = FOLDER) -> None:
        self._prefixes = tuple(prefixes)
        self._folder = folder
        self._regions: dict[str, Region] = {}

    @property
    def enabled(self) -> bool:
        """Whether shared memory is on."""
        return bool(self._prefixes)

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Registers `byte_size` bytes from `offset` of the shared memory object `key` as region `name`.

        Raises `InvalidInput` for a name, key or size that is not valid, `AlreadyExists` if the name is taken,
        `LimitReached` if there are `MAX_REGIONS` regions, and `Unsupported` if shared memory is off.
        """
        self._check_enabled()
        if not name:
            raise InvalidInput("the shared memory region has no name; give it one")
        if name in self._regions:
            raise AlreadyExists(f"shared memory region '{name}' is registered already; unregister it first")
        if len(self._regions) >= MAX_REGIONS:
            raise LimitReached(f"{MAX_REGIONS} shared memory regions are registered, that is the limit; unregister one")
        file = key.removeprefix("/")
        if not file.startswith(self._prefixes) or "/" in file or "\0" in file:
            raise InvalidInput(
                f"key {key!r} is not allowed; use a key that begins with {' or '.join(self._prefixes)} and has no "
                "further '/'"
            )
        if byte_size < 1:
            raise InvalidInput(f"byte_size is {byte_size}, expected 1 or more")
        descriptor = self._open(file, key)
        region = Region(name, key, offset, byte_size, descriptor)
        size = os.fstat(descriptor).st_size
        if offset + byte_size > size:
            raise InvalidInput(
                f"shared memory '{key}' has {size} bytes, but offset {offset} and byte_size {byte_size} end behind "
                "them; register a smaller region"
            )
        self._regions[name] = region

    def unregister(self, name: str) -> None:
        """Removes a region, or all if `name` is "". Raises `Unsupported` if shared memory is off.

        Requests in flight keep the regions that they use. As in Triton, an unknown name is no error.
        """
        self._check_enabled()
        if name:
            self._regions.pop(name, None)
        else:
            self._regions.clear()

    def get(self, name: str) -> Region:
        """Returns a region. Raises `RegionNotFound`, and `Unsupported` if shared memory is off."""
        self._check_enabled()
        if name not in self._regions:
            raise RegionNotFound(f"shared memory region '{name}' is not registered; register it first")
        return self._regions[name]

    def all(self) -> list[Region]:
        """Returns all regions in the order of registration. Raises `Unsupported` if shared memory is off."""
        self._check_enabled()
        return list(self._regions.values())

    def _check_enabled(self) -> None:
        if not self.enabled:
            raise Unsupported(
                "shared memory is off; start the server with --shared-memory-prefix, or send tensors in messages"
            )

    def _open(self, file: str, key: str) -> int:
        try:
            # Without O_NONBLOCK, opening a pipe in the folder would wait for the other end of the pipe.
            descriptor = os.open(self._folder / file, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            advice = _PERMIT.format(user=os.geteuid()) if isinstance(error, PermissionError) else ""
            raise InvalidInput(f"shared memory '{key}' cannot be opened: {error.strerror}{advice}") from error
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        with contextlib.suppress(OSError):
            os.close(descriptor)
        raise InvalidInput(f"shared memory '{key}' cannot be opened: it is not a shared memory object")
