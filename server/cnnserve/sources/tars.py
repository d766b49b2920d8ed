"""Reads tars of strangers: plain files only, bounded in number and size. Writes tars that are always the same."""

import gzip
import io
import os
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO, cast

from cnnserve.sources.errors import SourceError
from cnnserve.sources.room import Reads, Room, check_path, make_folder, write

# Headers of long names and attributes are read at once; names of paths need far less.
_LARGEST_HEADER = 1 << 20
_BROKEN = (tarfile.TarError, EOFError, zlib.error, ValueError, OverflowError, RecursionError)


class _Forward(io.RawIOBase):
    """The bytes of a tar, read once from start to end, as `tarfile` needs them. Counts what it reads."""

    def __init__(self, source: Reads, room: Room) -> None:
        super().__init__()
        self._source = source
        self._room = room
        self._position = 0

    def read(self, size: int = -1, /) -> bytes:
        """Returns the next bytes: `size` of them, unless the tar ends before."""
        if not 0 <= size <= _LARGEST_HEADER:
            raise SourceError(f"the tar has a header of {size} bytes, at most {_LARGEST_HEADER} are read")
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
            if not self.read(min(offset - self._position, _LARGEST_HEADER)):
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
        with tarfile.open(fileobj=_Forward(plain, room), mode="r:") as tar:
            while (member := tar.next()) is not None:
                # tarfile keeps every member, for lookups by name.
                tar.members = []  # type: ignore[attr-defined]
                _unpack_one(tar, member, into, room, inside)
    except gzip.BadGzipFile as error:
        raise _damaged(error) from error
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
