"""Exports that are killed: whatever the moment, the repository scans clean and the next export works."""

import itertools
import signal
from pathlib import Path

import pytest

from cnnserve.repository import folders
from cnnserve.repository import manifest as manifests
from exporting import Exports
from support import open_version

KILLED, STOPPED, TIMED = -signal.SIGKILL, -signal.SIGSTOP, -signal.SIGPROF
SPREAD = 8


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "models"


def check(root: Path) -> list[int]:
    """Holds the repository to what a server's scan wants; the versions of lenet5."""
    if not root.exists():
        return []
    assert not folders.misnamed(root)
    models = folders.scan(root)
    assert {model.name for model in models} <= {"lenet5"}
    for model in models:
        assert [path.name for path in sorted(model.path.iterdir()) if path.is_file()] == ["config.pbtxt", "labels.txt"]
        for version, folder in model.versions.items():
            manifest = manifests.read(folder)
            assert manifest is not None
            manifests.verify_files(manifest, folder)
            assert manifest.version == version
            assert {path.name for path in folder.iterdir()} == {*manifest.files, manifests.MANIFEST_FILE}
    return [version for model in models for version in model.versions]


def leftovers(root: Path) -> list[str]:
    return [path.name for path in root.iterdir() if path.name.startswith(".")]


def labels(folder: Path) -> Path:
    path = folder / "names.txt"
    path.write_text("\n".join("0123456789"))
    return path


def test_a_kill_before_any_change_of_the_disk(exports: Exports, root: Path, tmp_path: Path) -> None:
    """At every call that makes, writes, renames or removes something; into an empty repository, then again."""
    flags = ("--repository", root, "--labels", labels(tmp_path))
    kills = 0
    for _ in range(2):
        for number in itertools.count(1):
            before = check(root)
            ended = exports.run(*flags, kill_at=number)
            assert ended.code in (KILLED, 0), ended.err
            assert check(root) in (before, [*before, len(before) + 1])
            if ended.code == 0:
                break
            kills += 1
        assert leftovers(root) == []
    assert kills > 80
    newest = check(root)[-1]
    assert open_version(folders.find(root, "lenet5"), newest).info.self_test


def test_a_kill_at_any_time(exports: Exports, root: Path, tmp_path: Path) -> None:
    """At eight CPU times, from the conversion to the proof and the publishing."""
    flags = ("--repository", root, "--labels", labels(tmp_path))
    codes = set()
    for number in range(SPREAD):
        ended = exports.run(*flags, whole=True, kill_after=1.2 * (number + 0.5) / SPREAD)
        assert ended.code in (TIMED, 0), ended.err
        codes.add(ended.code)
        check(root)
    assert TIMED in codes
    assert exports.run(*flags).code == 0
    assert check(root)
    assert leftovers(root) == []


def test_a_live_exports_folder_is_left_alone(exports: Exports, root: Path, tmp_path: Path) -> None:
    """One stops in the middle of its work; another begins and ends meanwhile; both are published."""
    flags = ("--repository", root, "--labels", labels(tmp_path))
    slow = exports.start(*flags, stop_at=8)
    assert slow.wait().code == STOPPED
    (working,) = leftovers(root)
    for version in (1, 2):
        assert exports.run(*flags).code == 0
        assert check(root)[-1] == version
        assert leftovers(root) == [working]
    slow.proceed()
    assert slow.wait().code == 0
    assert check(root) == [1, 2, 3]
    assert leftovers(root) == []


def test_a_number_that_was_asked_for_is_lost_to_who_came_first(exports: Exports, root: Path, tmp_path: Path) -> None:
    flags = ("--repository", root, "--labels", labels(tmp_path), "--version", "1")
    slow = exports.start(*flags, stop_at=8)
    assert slow.wait().code == STOPPED
    assert exports.run(*flags).code == 0
    slow.proceed()
    ended = slow.wait()
    assert ended.code == 1
    assert "lenet5/1 exists, and a published version never changes" in ended.err
    assert check(root) == [1]
    assert leftovers(root) == []


def test_many_at_once(exports: Exports, root: Path, tmp_path: Path) -> None:
    flags = ("--repository", root, "--labels", labels(tmp_path))
    running = [exports.start(*flags) for _ in range(4)]
    ended = [export.wait() for export in running]
    assert [export.code for export in ended] == [0] * 4, ended
    assert check(root) == [1, 2, 3, 4]
    assert leftovers(root) == []
