"""Real errors of the file system: full disks, too large files, missing permissions, files in the way."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cnnserve.repository import manifest as manifests
from disks import mounted
from exporting import NOBODY, Ended, Exports


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that other users may read; pytest's own folders do not allow it."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def refused(ended: Ended, message: str) -> None:
    assert ended.code == 1, ended.err
    (line,) = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert message in line
    assert ".publish-" not in line
    assert "Traceback" not in ended.err


def test_a_full_disk_leaves_what_was_there(exports: Exports, tmp_path: Path) -> None:
    """The disk is full at the model file, at the manifest or at the config, for each size that is too small."""
    names = tmp_path / "names.txt"
    names.write_text("\n".join("0123456789"))
    disk, codes = tmp_path / "disk", []
    # LeNet-5's model file takes 244 KiB, three golden images 40 KiB, every other file one page of 4 KiB.
    for kib in (4, 100, 244, *range(304, 348, 4)):
        if not mounted(disk, kib):
            pytest.skip("mounting a small file system needs root")
        with ExitStack() as stack:
            stack.callback(subprocess.run, ["umount", str(disk)], check=True)
            ended = exports.run("--repository", disk / "models", "--labels", names)
            codes.append(ended.code)
            if ended.code:
                refused(
                    ended, f"the repository {disk}/models cannot be written: No space left on device; free space on"
                )
                assert list(disk.iterdir()) == []
            else:
                manifest = manifests.read(disk / "models/lenet5/1")
                assert manifest
                manifests.verify_files(manifest, disk / "models/lenet5/1")
    assert codes == sorted(codes, reverse=True)
    assert {*codes} == {0, 1}


def test_a_disk_that_the_lowered_file_fills(exports: Exports, tmp_path: Path) -> None:
    """The disk is full at each file that an export to fp16 writes: the error names the disk, not the network."""
    disk, codes = tmp_path / "disk", []
    for kib in (260, 440, 620, 800, 4000):
        if not mounted(disk, kib):
            pytest.skip("mounting a small file system needs root")
        with ExitStack() as stack:
            stack.callback(subprocess.run, ["umount", str(disk)], check=True)
            ended = exports.run("--repository", disk / "models", "--precision", "fp16")
            codes.append(ended.code)
            if ended.code:
                refused(ended, f"{disk}/models cannot be written: No space left on device; free space on")
                assert list(disk.iterdir()) == []
    assert codes == sorted(codes, reverse=True)
    assert {*codes} == {0, 1}


def test_a_file_larger_than_allowed(exports: Exports, tmp_path: Path) -> None:
    assert exports.run("--repository", tmp_path / "models").code == 0
    before = sorted(tmp_path.rglob("*"))
    ended = exports.run("--repository", tmp_path / "models", file_limit=100_000)
    refused(ended, "models cannot be written: File too large; raise the limit on the size of files (ulimit -f)")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("closed", ["", "models", "models/lenet5"])
def test_a_folder_that_may_not_be_written(closed: str, exports: Exports, shared: Path) -> None:
    """The folder is the model repository's parent, the model repository, or the model folder.

    In all cases, the error comes before the export's work.
    """
    if closed:
        (shared / "models" / "lenet5").mkdir(parents=True)
        for folder in ("models", "models/lenet5"):
            (shared / folder).chmod(0o777)
    (shared / closed).chmod(0o555)
    before = sorted(shared.rglob("*"))
    ended = exports.run("--repository", shared / "models", nobody=True)
    (shared / closed).chmod(0o755)
    refused(
        ended, f"the repository {shared}/models cannot be written: Permission denied; get permission to write there"
    )
    assert sorted(shared.rglob("*")) == before
    assert "convert" not in ended.err


def test_a_disk_mounted_to_be_read(exports: Exports, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    if not mounted(disk, 4096):
        pytest.skip("mounting a small file system needs root")
    with ExitStack() as stack:
        stack.callback(subprocess.run, ["umount", str(disk)], check=True)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        ended = exports.run("--repository", disk)
        refused(ended, "disk cannot be written: Read-only file system; choose another --repository")
        assert "convert" not in ended.err


def test_a_folder_that_may_not_be_looked_into(exports: Exports, shared: Path) -> None:
    (shared / "closed").mkdir(mode=0o700)
    (shared / "closed").chmod(0o700 if os.getuid() == 0 else 0)
    ended = exports.run("--repository", shared / "closed" / "models", nobody=True)
    (shared / "closed").chmod(0o700)
    refused(ended, "models cannot be written: Permission denied")


@pytest.mark.skipif(os.getuid() != 0, reason="making another user's files needs root")
def test_what_another_user_left_hinders_nobody(exports: Exports, shared: Path) -> None:
    (shared / "models" / ".publish-theirs" / "1").mkdir(parents=True)
    (shared / "models").chmod(0o1777)
    assert exports.run("--repository", shared / "models", nobody=True).code == 0
    assert {path.name for path in (shared / "models").iterdir()} == {".publish-theirs", "lenet5"}
    assert (shared / "models" / "lenet5").stat().st_uid == NOBODY
    assert exports.run("--repository", shared / "models").code == 0
    assert {path.name for path in (shared / "models").iterdir()} == {"lenet5"}


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("a/models", "a/models is a file, expected a folder"),
        ("a/models/lenet5", "a/models/lenet5 is a file, expected a folder"),
        ("a", "a/models cannot be written: Not a directory"),
    ],
)
def test_a_file_in_the_way(path: str, message: str, exports: Exports, tmp_path: Path) -> None:
    (tmp_path / path).parent.mkdir(exist_ok=True, parents=True)
    (tmp_path / path).write_text("mine")
    refused(exports.run("--repository", tmp_path / "a" / "models"), message)
    assert (tmp_path / path).read_text() == "mine"


def test_a_link_to_nothing_in_the_way(exports: Exports, tmp_path: Path) -> None:
    (tmp_path / "models").symlink_to(tmp_path / "gone")
    refused(exports.run("--repository", tmp_path / "models"), "models is a link to nothing, expected a folder")
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def test_a_linked_repository_and_its_linked_model_are_published_into(exports: Exports, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "models").symlink_to("real")
    (tmp_path / "real" / "lenet5").symlink_to("../elsewhere")
    (tmp_path / "elsewhere" / "note").touch()
    assert exports.run("--repository", tmp_path / "models").code == 0
    assert {path.name for path in (tmp_path / "elsewhere").iterdir()} == {"note", "1"}


def test_a_model_folder_that_links_to_an_empty_one_gets_the_version_alone(exports: Exports, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "lenet5").symlink_to("../elsewhere")
    assert exports.run("--repository", tmp_path / "models").code == 0
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["1"]
    assert (tmp_path / "models" / "lenet5").is_symlink()


def test_a_model_folder_on_another_disk_is_told_before_the_work(exports: Exports, tmp_path: Path) -> None:
    if not mounted(tmp_path / "disk", 4096):
        pytest.skip("mounting a small file system needs root")
    with ExitStack() as stack:
        stack.callback(subprocess.run, ["umount", str(tmp_path / "disk")], check=True)
        (tmp_path / "models").mkdir()
        (tmp_path / "models" / "lenet5").symlink_to("../disk")
        ended = exports.run("--repository", tmp_path / "models")
        refused(ended, "models/lenet5 is a link to another file system than the repository, so")
        assert "convert" not in ended.err


def test_folders_made_on_the_way_go_with_what_failed(exports: Exports, tmp_path: Path) -> None:
    ended = exports.run("--repository", tmp_path / "a" / "b" / "models", file_limit=1000)
    assert ended.code == 1
    assert list(tmp_path.iterdir()) == []
