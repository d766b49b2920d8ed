"""Pulls through fsspec: in memory, and from a local server of each object store (`make remote` installs them)."""

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from cnnserve.sources.contents import Plain
from cnnserve.sources.errors import NotFound, SourceError
from cnnserve.sources.object_stores import SCHEMES, ObjectStore
from cnnserve.sources.room import Room
from pulls import blob, layer, names, same
from store_servers import SERVERS, Store, missing
from support import REPOSITORY


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


@pytest.mark.parametrize(("scheme", "package"), SCHEMES.items())
def test_a_missing_package_is_named(scheme: str, package: str) -> None:
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed")
    with pytest.raises(SourceError, match=f'{scheme}:// needs {package}, .*: pip install "cnnserve\\[remote\\]"'):
        ObjectStore(f"{scheme}://owner/models")


@pytest.fixture(params=SCHEMES, scope="module")
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A bucket of each kind of object store."""
    if reason := missing(request.param):
        pytest.skip(reason)
    with SERVERS[request.param](tmp_path_factory.mktemp(request.param)) as store:
        yield store


@pytest.mark.parametrize("kind", ["repository", "layout", "pack.tar"])
def test_a_bucket(kind: str, store: Store, made: Path, tmp_path: Path) -> None:
    store.put(REPOSITORY if kind == "repository" else made / kind, kind)
    done = store.pull(kind, tmp_path / "models")
    assert done.stdout.strip().endswith("lenet5/1"), done.stderr
    same(REPOSITORY, tmp_path / "models")


def refused(done: "subprocess.CompletedProcess[str]", repository: Path, problem: str) -> None:
    assert done.returncode == 1
    assert re.fullmatch(rf"error: .*{problem}.*\n", done.stderr), done.stderr
    assert names(repository) == []


def test_a_bucket_with_something_else(store: Store, layout: Path, tmp_path: Path) -> None:
    source, repository = shutil.copytree(REPOSITORY, tmp_path / "source"), tmp_path / "models"
    onnx = source / "lenet5" / "1" / "model.onnx"
    onnx.write_bytes(onnx.read_bytes()[:-1] + b"x")
    store.put(source, "altered")
    refused(store.pull("altered", repository), repository, r"file model\.onnx was altered: SHA-256")
    blob(layout, layer(layout, "lenet5/1/model.onnx")["digest"]).write_bytes(b"x")
    store.put(layout, "broken")
    refused(store.pull("broken", repository), repository, r"model\.onnx ended after 1 of \d+ bytes")
    for key in ("nothing", "nothing.tar"):
        refused(store.pull(key, repository), repository, f"{store.address(key)} does not exist; correct the address")


def test_a_bucket_that_is_served(store: Store, tmp_path: Path) -> None:
    store.put(REPOSITORY, "served")
    flags = ["--repository", store.address("served"), "--pull-cache", str(tmp_path / "cache"), "--dry-run"]
    done = store.run("-m", "cnnserve", "serve", *flags)
    assert "ready: 1 of 1 versions can be served" in done.stdout, done.stderr
    assert f"pulling {store.address('served')} into {tmp_path / 'cache'}" in done.stderr
    # The addresses of requests may have signatures in them.
    assert "http://" not in done.stderr


# Variables that make each login wrong, and what is then said.
_WRONG = {
    "s3": ({"AWS_ACCESS_KEY_ID": "", "AWS_EC2_METADATA_DISABLED": "true"}, "cannot be read: .*and the credentials"),
    "az": (
        {"AZURE_STORAGE_CONNECTION_STRING": "AccountName=a;AccountKey=eA=="},
        "cannot be read: .*and the credentials",
    ),
    "hf": ({"HF_TOKEN": "hf_another"}, "cannot be read: .*401 Unauthorized.*and the credentials"),
}


def test_a_wrong_login(store: Store, tmp_path: Path) -> None:
    if store.scheme not in _WRONG:
        pytest.skip("the local server lets everybody in")
    variables, problem = _WRONG[store.scheme]
    refused(store.with_variables(**variables).pull("repository", tmp_path / "models"), tmp_path / "models", problem)


def test_objects_for_everybody(store: Store, tmp_path: Path) -> None:
    """The packages want to be told that there is no login."""
    nobody = {"s3": {"AWS_ACCESS_KEY_ID": "", "FSSPEC_S3_ANON": "true"}, "gs": {"FSSPEC_GS_TOKEN": "anon"}}
    if store.scheme not in nobody:
        pytest.skip("the local server has no such objects")
    store.put(REPOSITORY, "public")
    if store.scheme == "s3":
        publish = "import s3fs; s3fs.S3FileSystem().chmod('bucket/public', 'public-read', recursive=True)"
        assert store.run("-c", publish).returncode == 0
    done = store.with_variables(**nobody[store.scheme]).pull("public", tmp_path / "models")
    assert (done.returncode, done.stderr) == (0, "")
