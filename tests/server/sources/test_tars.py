"""Tars of strangers: plain files only, bounded, and nothing outside of the folder whatever the bytes are."""

import contextlib
import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnserve.sources import tars
from cnnserve.sources.errors import SourceError
from cnnserve.sources.room import Room

MIB = 1 << 20


def member(name: str, content: bytes = b"x", **changes: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in changes.items():
        setattr(info, field, value)
    return info, content


def tar(*members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:", format=form) as made:
        for info, content in members:
            made.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def unpack(data: bytes, into: Path, *, room: Room | None = None, **more: object) -> None:
    into.mkdir(exist_ok=True)
    tars.unpack(io.BytesIO(data), into, room or Room(), **more)  # type: ignore[arg-type]


def found(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(data: bytes, into: Path, problem: str, **more: object) -> None:
    with pytest.raises(SourceError, match=problem):
        unpack(data, into, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_plain_files_and_folders_of_every_kind_of_tar(form: int, tmp_path: Path) -> None:
    unpack(tar(member("a", b"", type=tarfile.DIRTYPE), member("./a/c", b"1" * 2000), form=form), tmp_path / "out")
    assert found(tmp_path / "out") == {"a/c": b"1" * 2000}


def test_compressed_tars_and_folders_of_images(tmp_path: Path) -> None:
    base = member("bin/sh", b"", type=tarfile.SYMTYPE, linkname="/bin/busybox")
    packed = gzip.compress(tar(base, member("models", b"", type=tarfile.DIRTYPE), member("models/m/1/f")))
    unpack(packed, tmp_path / "out", compressed=True, inside="models")
    assert found(tmp_path / "out") == {"m/1/f": b"x"}


@pytest.mark.parametrize(
    ("made", "problem"),
    [
        (member("../evil"), r"the path '\.\./evil', which leads out of its folder"),
        (member("a/../../evil"), "which leads out of its folder"),
        (member("/etc/evil"), "the path '/etc/evil', which leads out"),
        (member("a", b"", type=tarfile.SYMTYPE, linkname="/etc"), "'a', which is a link to '/etc'; only plain files"),
        (member("a", b"", type=tarfile.LNKTYPE, linkname="../b"), r"which is a link to '\.\./b'"),
        (member("a", b"", type=tarfile.CHRTYPE), "which is a device or a pipe"),
        (member("a", b"", type=tarfile.BLKTYPE), "which is a device or a pipe"),
        (member("a", b"", type=tarfile.FIFOTYPE), "which is a device or a pipe"),
        (member("a", b"", type=b"Z"), "which is no plain file"),
        (member(".hidden"), "none of which begins with a dot"),
        (member("a\\b"), "expected a relative path"),
        (member("a\nb"), "expected a relative path"),
        (member("a/" * 10 + "b"), "of at most 4 names"),
        (member("ä" * 200), "of at most 255 bytes"),
    ],
)
def test_what_is_no_plain_file_in_the_folder(made: tuple[tarfile.TarInfo, bytes], problem: str, tmp_path: Path) -> None:
    refused(tar(made), tmp_path / "out", problem)
    assert found(tmp_path) == {}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_a_link_in_the_folder_of_an_image(kind: bytes, tmp_path: Path) -> None:
    data = tar(member("models", b"", type=kind, linkname="/etc"), member("models/evil"))
    refused(data, tmp_path / "out", "which is a link to '/etc'", inside="models")


def test_a_sparse_file(tmp_path: Path) -> None:
    made = member(
        "a", pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(1 << 40)}
    )
    refused(tar(made), tmp_path / "out", "no plain file|damaged")


def test_a_file_twice_and_a_file_as_a_folder(tmp_path: Path) -> None:
    refused(tar(member("a"), member("a")), tmp_path / "one", "the source has 'a' twice")
    refused(tar(member("a"), member("a/b")), tmp_path / "two", "the source has 'a' twice")
    refused(tar(member("a/b"), member("a", b"", type=tarfile.DIRTYPE), member("a")), tmp_path / "three", "twice")


def test_too_many_and_too_large_files(tmp_path: Path) -> None:
    many = tar(*(member(f"f{number}") for number in range(11)))
    refused(many, tmp_path / "many", "more than 10 files, the limit", room=Room(files=10))
    folders = tar(*(member(f"f{number}", b"", type=tarfile.DIRTYPE) for number in range(11)))
    refused(folders, tmp_path / "folders", "more than 10 files, the limit", room=Room(files=10))
    refused(folders, tmp_path / "base", "more than 10 files, the limit", room=Room(files=10), inside="models")
    large = gzip.compress(tar(member("a", bytes(8 * MIB))))
    assert len(large) < MIB
    refused(large, tmp_path / "large", f"more than {MIB} bytes, the limit", room=Room(MIB), compressed=True)
    beside = gzip.compress(tar(member("other/a", bytes(8 * MIB)), member("models/m")))
    refused(beside, tmp_path / "beside", "more than", room=Room(MIB), compressed=True, inside="models")


def sparse(**headers: str) -> bytes:
    """The headers of a sparse file."""
    made = member("a", b"", pax_headers={f"GNU.sparse.{key}": value for key, value in headers.items()})
    return tar(made)[: 3 * tarfile.BLOCKSIZE]


def old_sparse() -> bytes:
    """The header of a sparse file, in GNU's old form, whose map goes on in the next block."""
    header = bytearray(tar(member("a", b""), form=tarfile.GNU_FORMAT)[: tarfile.BLOCKSIZE])
    header[156], header[482] = ord("S"), 1
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


FOLDER = tar(member("a", b"", type=tarfile.DIRTYPE))[: tarfile.BLOCKSIZE]
SPARSE = sparse(major="1", minor="0", realsize="1")


@pytest.mark.parametrize(
    "data",
    [
        tar(member("a", pax_headers={"comment": "x" * (2 * MIB)})),
        tar(member("x" * (2 * MIB)), form=tarfile.GNU_FORMAT),
        SPARSE + b"%d\n" % 10**12 + b"1\n" * MIB,
        old_sparse() + (b"\x80%11d" % 1 * 42 + b"1" * 8) * 200,
        # Attributes of the whole tar, before each folder.
        b"".join(tarfile.TarInfo.create_pax_global_header({str(n): "x" * 30_000}) + FOLDER for n in range(1200)),
    ],
    ids=["attributes", "name", "sparse", "old sparse", "many"],
)
def test_headers_that_fill_the_memory(data: bytes, tmp_path: Path) -> None:
    refused(data, tmp_path / "out", "headers of more than 32768 bytes for one file, or 33554432 in all")


@pytest.mark.parametrize("data", [SPARSE, SPARSE + b"9\n1", SPARSE + b"x" * 512, old_sparse(), sparse(map="1,x")])
def test_headers_that_are_cut_off(data: bytes, tmp_path: Path) -> None:
    refused(data, tmp_path / "out", "the tar is damaged")


def test_headers_in_headers(tmp_path: Path) -> None:
    """Each header of attributes belongs to the next member, which may be one again."""
    header = tar(member("a", pax_headers={"comment": "x"}))[: 2 * tarfile.BLOCKSIZE]
    refused(header * 5000, tmp_path / "out", "headers of more than")


@pytest.mark.parametrize("change", [lambda data: b"", lambda data: data[:100], lambda data: b"x" * 2000, gzip.compress])
def test_what_is_no_tar(change: Callable[[bytes], bytes], tmp_path: Path) -> None:
    refused(change(tar(member("a"))), tmp_path / "out", "the tar is damaged, or not a tar")


def test_a_tar_that_ends_early(tmp_path: Path) -> None:
    refused(tar(member("a", bytes(5000)))[:3000], tmp_path / "out", "the tar is damaged|ended after")
    packed = gzip.compress(tar(member("a", bytes(5000))))
    for size in (0, 5, 40):
        refused(packed[:size], tmp_path / f"out{size}", "the tar is damaged", compressed=True)


GOOD = tar(
    member("m/1/a", b"abc" * 400), member("b" * 90, pax_headers={"path": "c" * 120}), member("m/2", b"", type=b"5")
)


@given(
    changes=st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=12),
    length=st.integers(0, len(GOOD)),
)
def test_any_bytes_give_files_in_the_folder_or_an_error(
    changes: list[tuple[int, int]], length: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = bytearray(GOOD[: max(length, 1)])
    for place, value in changes:
        data[place % len(data)] = value
    root = tmp_path_factory.mktemp("any")
    with contextlib.suppress(SourceError):
        unpack(bytes(data), root / "out", room=Room(MIB, 10))
    assert [path.name for path in root.iterdir()] == ["out"]
    assert all(not path.is_symlink() for path in root.rglob("*"))


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    names = ["a", "x" * 200 + "/b", "c"]
    made = io.BytesIO()
    tars.write_tar(made, [(name, tmp_path / "file") for name in names])
    unpack(made.getvalue(), tmp_path / "out")
    assert found(tmp_path / "out") == dict.fromkeys(names, b"content")
