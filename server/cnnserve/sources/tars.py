"""Reads tars of strangers: plain files only, bounded in number and size. Writes tars that are always the same."""

import contextlib
import gzip
import io
import os
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, cast

from cnnserve.sources.errors import SourceError
from cnnserve.sources.room import Reads, Room, check_path, make_folder, write

# `tarfile` holds all headers of a member in memory: names, attributes, maps of sparse files. Its older versions also
# need time in the square of their size. Paths need far less.
_LARGEST_HEADER = 32 << 10
# Attributes of the whole tar are held to its end.
_ALL_HEADERS = 32 << 20
_PIECE = 1 << 20
# Of the content of files. What `tarfile` makes of strange headers may raise anything, see `_headers`.
_BROKEN = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile)


class _Forward(io.RawIOBase):
    """The bytes of a tar, read once from start to end, as `tarfile` needs them. Counts what it reads."""

    def __init__(self, source: Reads, room: Room) -> None:
        super().__init__()
        self._source = source
        self._room = room
        self._position = 0
        self._headers_left = _ALL_HEADERS
        self._header_left: int | None = None

    @contextlib.contextmanager
    def headers(self) -> Iterator[None]:
        """While inside, `read` returns as many bytes as the headers of one member may have."""
        self._header_left = _LARGEST_HEADER
        try:
            yield
        finally:
            self._header_left = None

    def read(self, size: int = -1, /) -> bytes:
        """Returns the next bytes: `size` of them, unless the tar ends before."""
        if self._header_left is not None:
            self._header_left -= size
            self._headers_left -= size
            if size < 0 or min(self._header_left, self._headers_left) < 0:
                raise SourceError(
                    f"the tar has headers of more than {_LARGEST_HEADER} bytes for one file, or {_ALL_HEADERS} in all; "
                    "make the pack anew with cnnserve pack"
                )
        return self._next(size)

    def _next(self, size: int) -> bytes:
        self._room.take(size, "the tar")
        parts = []
        while size > 0 and (part := self._source.read(size)):
            size -= len(part)
            self._position += len(part)
            parts.append(part)
        return b"".join(parts)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Reads up to `offset`, which must lie ahead."""
        if whence != os.SEEK_SET or offset < self._position:
            raise SourceError("the tar refers to bytes before others; make the pack anew with cnnserve pack")
        while self._position < offset:
            if not self._next(min(offset - self._position, _PIECE)):
                break
        return self._position

    def tell(self) -> int:
        """Returns the number of bytes that were read."""
        return self._position

    def seekable(self) -> bool:
        """Returns True: see `seek`."""
        return True

    def readable(self) -> bool:
        """Returns True."""
        return True


def unpack(source: Reads, into: Path, room: Room, *, compressed: bool = False, inside: str = "") -> None:
    """Writes the files of a tar into the folder `into`.

    `compressed`: with gzip. `inside`: takes only what lies in this folder of the tar, and leaves its name out; "": all.
    Raises `SourceError` for anything but plain files and folders, for a path that leads out, and for too much.
    """
    try:
        plain: Reads = gzip.GzipFile(fileobj=cast("IO[bytes]", source)) if compressed else source
        for tar, member in _members(_Forward(plain, room)):
            _unpack_one(tar, member, into, room, inside)
    except _BROKEN as error:
        raise _damaged(error) from error


def write_tar(to: io.BufferedIOBase | io.RawIOBase, files: Iterable[tuple[str, Path | bytes]]) -> None:
    """Writes a tar of plain files, each with its path in the tar and its content, in this order.

    The same files give the same bytes, whatever their times, owners and modes are.
    """
    with tarfile.open(fileobj=to, mode="w:", format=tarfile.PAX_FORMAT) as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.mode = 0o644
            with content.open("rb") if isinstance(content, Path) else io.BytesIO(content) as file:
                member.size = file.seek(0, os.SEEK_END)
                file.seek(0)
                tar.addfile(member, file)


def _members(file: _Forward) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    with _headers(file):
        tar = tarfile.TarFile(fileobj=file)
    with tar:
        while True:
            with _headers(file):
                member = tar.next()
            if member is None:
                return
            # tarfile keeps every member, for lookups by name.
            tar.members = []  # type: ignore[attr-defined]
            yield tar, member


@contextlib.contextmanager
def _headers(file: _Forward) -> Iterator[None]:
    with file.headers():
        try:
            yield
        # OSError: the tar cannot be read.
        except (SourceError, OSError):
            raise
        except Exception as error:
            raise _damaged(error) from error


def _unpack_one(tar: tarfile.TarFile, member: tarfile.TarInfo, into: Path, room: Room, inside: str) -> None:
    name = member.name.removeprefix("./") or "."
    if member.isdir() and name == ".":
        return
    if name.startswith("/") or ".." in name.split("/"):
        raise SourceError(
            f"the tar has the path {name[:200]!r}, which leads out of its folder; nothing of it was taken"
        )
    if inside:
        folder, _, name = name.partition("/")
        if folder != inside:
            # A layer of the base image of a modelcar: nothing of it is written.
            room.add(name)
            return
        if not name and member.isdir():
            return
    if not (member.isreg() or member.isdir()) or member.issparse():
        raise SourceError(
            f"the tar has {name[:200]!r}, which is {_kind(member)}; only plain files and folders are taken; make the "
            "pack with cnnserve pack"
        )
    path = into / check_path(name)
    if member.isdir():
        room.add(name)
        make_folder(path)
        return
    file = tar.extractfile(member)
    assert file is not None
    write(file, path, room, size=member.size, counted=True)


def _kind(member: tarfile.TarInfo) -> str:
    if member.issym() or member.islnk():
        return f"a link to {member.linkname[:200]!r}"
    if member.ischr() or member.isblk() or member.isfifo():
        return "a device or a pipe"
    return "no plain file"


def _damaged(error: BaseException) -> SourceError:
    return SourceError(f"the tar is damaged, or not a tar: {error or type(error).__name__}; make the pack anew")
