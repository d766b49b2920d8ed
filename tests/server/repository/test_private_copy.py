"""Private copies of files: the same bytes, their digest, and nobody who can change them."""

import errno
import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnserve.errors import ModelLoadFailed
from cnnserve.repository.private_copy import PrivateCopy

MEMORY = pytest.mark.parametrize("memfd", [True, False])


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files") / "file"


@MEMORY
@given(st.binary(max_size=3000), st.integers(1, 3000))
def test_a_copy_has_the_bytes_of_the_file(path: Path, memfd: bool, block: bytes, times: int) -> None:
    data = block * times
    path.write_bytes(data)
    with path.open("rb") as file:
        copy = PrivateCopy(file, "file", memfd=memfd)
    path.write_bytes(b"something else")
    assert (copy.size, copy.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert copy.data() == data
    with copy.open() as opened:
        assert opened.read() == data
    assert (copy.path is not None) == memfd
    copy.close()
    copy.close()


def test_nobody_can_change_it(path: Path) -> None:
    path.write_bytes(b"good")
    with path.open("rb") as file:
        copy = PrivateCopy(file, "file")
    assert copy.path is not None
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC):
        with pytest.raises(OSError, match=os.strerror(errno.EPERM)):
            os.write(os.open(copy.path, flags), b"evil")
    with pytest.raises(OSError, match=os.strerror(errno.EPERM)):
        os.truncate(copy.path, 0)
    with pytest.raises(TypeError):
        copy.view()[0] = 0
    assert copy.data() == b"good"
    copy.close()


@MEMORY
@pytest.mark.parametrize("change", [b"x", b""])
def test_a_file_that_grows_or_shrinks_meanwhile_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch, memfd: bool, change: bytes
) -> None:
    size = 3 << 20
    path.write_bytes(bytes(size))
    fstat = os.fstat

    def changed(descriptor: int) -> os.stat_result:
        state = fstat(descriptor)
        if change:
            with path.open("ab") as file:
                file.write(change)
        else:
            os.truncate(path, size // 2)
        return state

    with path.open("rb") as file:
        monkeypatch.setattr(os, "fstat", changed)
        with pytest.raises(ModelLoadFailed, match="file model was written while it was read"):
            PrivateCopy(file, "model", memfd=memfd)
