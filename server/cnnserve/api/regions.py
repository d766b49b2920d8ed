"""POSIX shared memory that clients on this machine register, to keep tensors out of their messages.

Nothing is mapped: bytes are copied with `pread` and `pwrite`. What the owner of a region does to it meanwhile can then
change values and nothing else; a mapping of a file that is cut short would end the process at the next access.
"""

import contextlib
import os
import stat
import weakref
from collections.abc import Sequence
from pathlib import Path

from cnnserve.errors import AlreadyExists, InvalidInput, LimitReached, RegionNotFound, Unsupported

# Where Linux keeps what shm_open makes.
FOLDER = Path("/dev/shm")  # noqa: S108
# Each holds a file open.
MAX_REGIONS = 256


class Region:
    """`byte_size` bytes from `offset` of an open shared memory object. It stays open for whoever holds the region."""

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
                f"shared memory region '{self.name}' has {self.byte_size} bytes; {size} from {offset} are outside it"
            )

    def read(self, offset: int, size: int) -> bytes:
        """A copy. Raises `InvalidInput` where the region, or what is left of its object, is smaller."""
        self.check(offset, size)
        start = self.offset + offset
        data = os.pread(self._descriptor, size, start)
        # One call ends at 2 GiB.
        while len(data) < size and (more := os.pread(self._descriptor, size - len(data), start + len(data))):
            data += more
        if len(data) < size:
            raise InvalidInput(
                f"shared memory '{self.key}' was made smaller than region '{self.name}', registered on it"
            )
        return data

    def write(self, offset: int, data: bytes) -> None:
        """Raises `InvalidInput` where the region, or what is left of its object, is smaller."""
        self.check(offset, len(data))
        start = self.offset + offset
        # A write behind its end would make it larger again.
        if os.fstat(self._descriptor).st_size < start + len(data):
            raise InvalidInput(
                f"shared memory '{self.key}' was made smaller than region '{self.name}', registered on it"
            )
        view = memoryview(data)
        while view:
            written = os.pwrite(self._descriptor, view, start)
            view, start = view[written:], start + written

    def _shrunk(self) -> InvalidInput:
        return InvalidInput(f"shared memory '{self.key}' was made smaller than region '{self.name}' of it")


class SharedMemory:
    """The registered regions by name. Off without `prefixes`: a key has to begin with one of them."""

    def __init__(self, prefixes: Sequence[str] = (), folder: Path = FOLDER) -> None:
        self._prefixes = tuple(prefixes)
        self._folder = folder
        self._regions: dict[str, Region] = {}

    @property
    def enabled(self) -> bool:
        """Whether the server was started with it."""
        return bool(self._prefixes)

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Raises `InvalidInput` for a key or a size that cannot be, `AlreadyExists`, `LimitReached`, `Unsupported`."""
        self._check_enabled()
        if not name:
            raise InvalidInput("the region has no name")
        if name in self._regions:
            raise AlreadyExists(f"shared memory region '{name}' is registered already; unregister it first")
        if len(self._regions) >= MAX_REGIONS:
            raise LimitReached(f"{MAX_REGIONS} shared memory regions are registered; unregister some")
        file = key.removeprefix("/")
        if not file.startswith(self._prefixes) or "/" in file or "\0" in file:
            raise InvalidInput(
                f"key {key!r} is not allowed; on this server keys begin with {' or '.join(self._prefixes)}"
            )
        if byte_size < 1:
            raise InvalidInput(f"byte_size is {byte_size}, expected 1 or more")
        descriptor = self._open(file, key)
        region = Region(name, key, offset, byte_size, descriptor)
        size = os.fstat(descriptor).st_size
        if offset + byte_size > size:
            raise InvalidInput(
                f"shared memory '{key}' has {size} bytes; offset {offset} and byte_size {byte_size} end behind it"
            )
        self._regions[name] = region

    def unregister(self, name: str) -> None:
        """Forgets a region, "" all; requests at work keep theirs. An unknown name is no error, as in Triton."""
        self._check_enabled()
        if name:
            self._regions.pop(name, None)
        else:
            self._regions.clear()

    def get(self, name: str) -> Region:
        """Raises `RegionNotFound`, `Unsupported`."""
        self._check_enabled()
        if name not in self._regions:
            raise RegionNotFound(f"shared memory region '{name}' is not registered")
        return self._regions[name]

    def all(self) -> list[Region]:
        """Every region, in the order of registration. Raises `Unsupported`."""
        self._check_enabled()
        return list(self._regions.values())

    def _check_enabled(self) -> None:
        if not self.enabled:
            raise Unsupported("shared memory is off; start the server with --shared-memory-prefix, or send the bytes")

    def _open(self, file: str, key: str) -> int:
        try:
            # Non-blocking, or opening a pipe that lies there would wait for its other end.
            descriptor = os.open(self._folder / file, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise InvalidInput(f"shared memory '{key}' cannot be opened: {error.strerror}") from error
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        with contextlib.suppress(OSError):
            os.close(descriptor)
        raise InvalidInput(f"shared memory '{key}' cannot be opened: it is no memory object")
