"""Pulls through fsspec: in memory, and from a local S3 server (`make remote` installs it)."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import fsspec
import pytest

from cnnserve.sources.contents import Plain
from cnnserve.sources.errors import NotFound, SourceError
from cnnserve.sources.object_stores import ObjectStore
from cnnserve.sources.room import Room
from pulls import blob, layer, names, same
from support import HANG_S, REPOSITORY

# A folder with s3fs and moto, which are large, and which nothing else needs.
REMOTE = os.environ.get("CNNSERVE_TEST_REMOTE", "")


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    """A file system of fsspec, in memory, which is empty at the end."""
    files = fsspec.filesystem("memory")
    yield files
    files.rm("/bucket", recursive=True)


def test_a_folder_is_read_as_it_is(memory: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    memory.put(f"{REPOSITORY}/", "/bucket/models/", recursive=True)
    memory.pipe("/bucket/models/README.md", b"x")
    memory.pipe("/bucket/models/.hidden/file", b"x")
    memory.pipe("/bucket/models/lenet5/.hidden", b"x")
    store = ObjectStore("memory://bucket/models")
    sizes = {str(path.relative_to(REPOSITORY)): path.stat().st_size for path in REPOSITORY.rglob("*") if path.is_file()}
    assert store.files() == sizes | {"README.md": 1}
    assert store.has("lenet5/config.pbtxt")
    assert not store.has("oci-layout")
    source = Plain(store)
    source.identify(tmp_path, Room())
    source.fetch(tmp_path, Room())
    same(REPOSITORY, tmp_path / "files")


def test_files_that_are_not_there(memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe("/bucket/file", b"x")
    with (
        pytest.raises(NotFound, match="memory://bucket/nothing does not exist; correct the address"),
        ObjectStore("memory://bucket").open("nothing"),
    ):
        pass
    with pytest.raises(SourceError, match="memory://bucket/none does not exist"):
        ObjectStore("memory://bucket/none").files()


def test_too_many_files(memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnnserve.sources.stores.MOST_FILES", 3)
    for number in range(4):
        memory.pipe(f"/bucket/{number}", b"x")
    with pytest.raises(SourceError, match="memory://bucket has more than 3 files, the limit"):
        ObjectStore("memory://bucket").files()


@dataclass
class S3:
    """A local S3 server, and what reaches it."""

    environment: dict[str, str]

    def run(self, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
        """Runs Python with these arguments."""
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=HANG_S, check=False
        )

    def put(self, folder: Path, key: str) -> None:
        """Copies a file, or the content of a folder, into the bucket."""
        code = "import sys, s3fs\ns3fs.S3FileSystem().put(sys.argv[1], sys.argv[2], recursive=True)"
        source = f"{folder}/" if folder.is_dir() else folder
        done = self.run("-c", code, str(source), f"bucket/{key}")
        assert done.returncode == 0, done.stderr

    def pull(self, key: str, repository: Path) -> "subprocess.CompletedProcess[str]":
        """Runs `cnnserve pull`."""
        return self.run("-m", "cnnserve", "pull", f"s3://bucket/{key}", "--repository", repository)


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    if not REMOTE:
        pytest.skip("needs s3fs and moto, which make remote installs")
    log = tmp_path_factory.mktemp("s3") / "log"
    path = f"{REMOTE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    environment = os.environ | {
        "PYTHONPATH": path,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output, env=environment) as server:
        try:
            end = time.monotonic() + HANG_S
            while not (match := re.search(r"Running on (http://127\.0\.0\.1:\d+)", log.read_text())):
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.02)
            s3 = S3(environment | {"AWS_ENDPOINT_URL": match[1]})
            made = s3.run("-c", "import s3fs; s3fs.S3FileSystem().mkdir('bucket')")
            assert made.returncode == 0, made.stderr
            yield s3
        finally:
            server.terminate()


@pytest.mark.parametrize("kind", ["repository", "layout", "pack.tar"])
def test_a_bucket(kind: str, s3: S3, made: Path, tmp_path: Path) -> None:
    s3.put(REPOSITORY if kind == "repository" else made / kind, kind)
    done = s3.pull(kind, tmp_path / "models")
    assert done.stdout.strip().endswith("lenet5/1"), done.stderr
    same(REPOSITORY, tmp_path / "models")


def refused(done: "subprocess.CompletedProcess[str]", repository: Path, problem: str) -> None:
    assert done.returncode == 1
    assert re.fullmatch(rf"error: .*{problem}.*\n", done.stderr), done.stderr
    assert names(repository) == []


def test_a_bucket_with_something_else(s3: S3, layout: Path, tmp_path: Path) -> None:
    source, repository = shutil.copytree(REPOSITORY, tmp_path / "source"), tmp_path / "models"
    onnx = source / "lenet5" / "1" / "model.onnx"
    onnx.write_bytes(onnx.read_bytes()[:-1] + b"x")
    s3.put(source, "altered")
    refused(s3.pull("altered", repository), repository, r"file model\.onnx was altered: SHA-256")
    blob(layout, layer(layout, "lenet5/1/model.onnx")["digest"]).write_bytes(b"x")
    s3.put(layout, "broken")
    refused(s3.pull("broken", repository), repository, r"model\.onnx ended after 1 of \d+ bytes")
    refused(s3.pull("nothing", repository), repository, "s3://bucket/nothing does not exist; correct the address")
    refused(s3.pull("nothing.tar", repository), repository, r"s3://bucket/nothing\.tar does not exist")


def test_a_bucket_that_is_served(s3: S3, tmp_path: Path) -> None:
    s3.put(REPOSITORY, "served")
    flags = ["--repository", "s3://bucket/served", "--pull-cache", str(tmp_path / "cache"), "--dry-run"]
    done = s3.run("-m", "cnnserve", "serve", *flags)
    assert "ready: 1 of 1 versions can be served" in done.stdout, done.stderr
    assert f"pulling s3://bucket/served into {tmp_path / 'cache'}" in done.stderr + done.stdout
