"""Publishing where the file system cannot lock, flush a folder, or set modes: the operations fail as they do there."""

import errno
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cnnserve.repository import manifest as manifests
from support import REPOSITORY

# Runs `cnnserve copy` in a process in which operations fail with an error number, as NFS, Lustre or FUSE give it.
_COPY = """
import os, stat, sys
failing = dict(part.split("=") for part in sys.argv[1].split(","))

def fail(name):
    if name in failing:
        raise OSError(int(failing[name]), os.strerror(int(failing[name])))

def hook(event, arguments):
    if event in ("fcntl.flock", "os.chmod"):
        fail(event.rpartition(".")[2])

fsync = os.fsync

def flush(descriptor):
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        fail("fsync")
    fsync(descriptor)

os.fsync = flush
os.umask(0o077)
sys.addaudithook(hook)
from cnnserve_export.cli import copy
sys.exit(copy(sys.argv[2:]))
"""


def publish(root: Path, failing: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", _COPY, failing, str(root / "lenet5" / "1"), str(root / "digits")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    shutil.copytree(REPOSITORY, tmp_path / "models")
    return tmp_path / "models"


@pytest.mark.parametrize(
    ("failing", "said"),
    [
        (f"flock={errno.ENOLCK}", "cannot lock: of exports or pulls at the same time"),
        (f"flock={errno.EBADF}", "cannot lock"),
        (f"fsync={errno.EINVAL}", "cannot flush: the version may be lost"),
        (f"chmod={errno.EPERM}", "cannot set modes: check that the user of the server may read"),
        (f"chmod={errno.EOPNOTSUPP}", "cannot set modes"),
    ],
)
def test_a_version_is_published_and_what_is_not_guaranteed_is_told(root: Path, failing: str, said: str) -> None:
    left = root / ".publish-of-another-export"
    left.mkdir()
    ended = publish(root, failing)
    assert ended.returncode == 0, ended.stderr
    manifest = manifests.read(root / "digits" / "1")
    assert manifest is not None
    manifests.verify_files(manifest, root / "digits" / "1")
    warnings = [line for line in ended.stderr.splitlines() if line.startswith("warning: ")]
    assert [said in line for line in warnings] == [True] * len(warnings)
    assert warnings
    assert ".publish-0" not in ended.stderr
    # Without locks, it may be the folder of an export that is still running.
    assert left.exists() is failing.startswith("flock")


@pytest.mark.parametrize("failing", [f"fsync={errno.EIO}", f"flock={errno.EIO}", f"chmod={errno.EROFS}"])
def test_an_error_of_the_disk_is_none_of_these(root: Path, failing: str) -> None:
    ended = publish(root, failing)
    assert ended.returncode == 1
    assert "cannot be written" in ended.stderr
    assert not (root / "digits").exists()
