"""Local servers of the four object stores, and programs in processes of their own that use them.

`make remote` installs moto (S3), gcp-storage-emulator and Azurite; the routes of the Hugging Face Hub are here.
"""

import base64
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from support import HANG_S
from web_servers import Answer, Request, Site, running

# A folder with the packages of the extra `remote` and the servers, which are large, and which nothing else needs.
REMOTE = os.environ.get("CNNSERVE_TEST_REMOTE", "")
_AZURITE = Path(REMOTE, "node_modules", ".bin", "azurite-blob")
# The account that each Azurite has.
_AZURE_KEY = base64.b64encode(b"cnnserve's tests").decode()
HUB_TOKEN = "hf_a_token"


@dataclass(frozen=True)
class Store:
    """A bucket of a local server. `environment` is that of the programs that use it."""

    scheme: str
    bucket: str
    environment: Mapping[str, str]
    # Where the server finds its files, if it reads them from the disk.
    folder: Path | None = None

    def run(self, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
        """Runs Python with these arguments."""
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=HANG_S, check=False
        )

    def address(self, key: str) -> str:
        """The address of what `put` has put."""
        return f"{self.scheme}://{self.bucket}/{key}"

    def put(self, source: Path, key: str) -> None:
        """Copies a file, or the content of a folder, into the bucket."""
        if self.folder is not None:
            (shutil.copytree if source.is_dir() else shutil.copy)(source, self.folder / key)
            return
        code = "import sys, fsspec\nfsspec.filesystem(sys.argv[1]).put(*sys.argv[2:], recursive=True)"
        done = self.run("-c", code, self.scheme, f"{source}/" if source.is_dir() else source, f"{self.bucket}/{key}")
        assert done.returncode == 0, done.stderr

    def pull(self, key: str, repository: Path) -> "subprocess.CompletedProcess[str]":
        """Runs `cnnserve pull`."""
        return self.run("-m", "cnnserve", "pull", self.address(key), "--repository", repository)

    def with_variables(self, **variables: str) -> "Store":
        """The same, for programs with other variables."""
        return replace(self, environment={**self.environment, **variables})


@contextlib.contextmanager
def s3(folder: Path) -> Iterator[Store]:
    """Moto."""
    environment = _environment(AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="secret", AWS_DEFAULT_REGION="us-east-1")
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with _server(command, environment, folder / "log") as url:
        store = Store("s3", "bucket", environment | {"AWS_ENDPOINT_URL": url})
        _make_bucket(store)
        yield store


@contextlib.contextmanager
def gs(folder: Path) -> Iterator[Store]:
    """A stub of Google Cloud Storage, which asks for no login."""
    # Without it, gcsfs asks the real service which kind of bucket it has, by gRPC, for minutes if there is no network.
    environment = _environment(FSSPEC_GS_TOKEN="anon", GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT="false")
    code = (
        "from gcp_storage_emulator.server import create_server\n"
        "server = create_server('127.0.0.1', 0, in_memory=True, default_bucket='bucket')\n"
        "server.start()\nprint(f'http://127.0.0.1:{server._api._httpd.server_port}', flush=True)"
    )
    with _server([sys.executable, "-c", code], environment, folder / "log") as url:
        yield Store("gs", "bucket", environment | {"STORAGE_EMULATOR_HOST": url})


@contextlib.contextmanager
def az(folder: Path) -> Iterator[Store]:
    """Azurite, Microsoft's emulator."""
    environment = _environment(AZURITE_ACCOUNTS=f"account:{_AZURE_KEY}")
    command = [str(_AZURITE), "--blobHost", "127.0.0.1", "--blobPort", "0", "--inMemoryPersistence", "--silent"]
    command += ["--skipApiVersionCheck", "--disableTelemetry"]
    with _server(command, environment, folder / "log") as url:
        parts = {"DefaultEndpointsProtocol": "http", "AccountName": "account", "AccountKey": _AZURE_KEY}
        parts["BlobEndpoint"] = f"{url}/account"
        connection = ";".join(f"{name}={value}" for name, value in parts.items())
        store = Store("az", "bucket", environment | {"AZURE_STORAGE_CONNECTION_STRING": connection})
        _make_bucket(store)
        yield store


@contextlib.contextmanager
def hf(folder: Path) -> Iterator[Store]:
    """The routes of the Hugging Face Hub that reading takes, for one repository, which wants a token."""
    files = folder / "files"
    files.mkdir()
    with running(Site(None, Hub("owner/models", files).answer)) as site:
        environment = _environment(HF_ENDPOINT=site.url, HF_TOKEN=HUB_TOKEN, HF_HOME=str(folder / "home"))
        yield Store("hf", "owner/models", environment, files)


class Hub:
    """A repository of models on the Hub."""

    def __init__(self, name: str, files: Path) -> None:
        self._name = name
        self._files = files

    def answer(self, request: Request) -> Answer:
        """Answers for the repository itself, for the tree of a folder and for the content of a file."""
        if request.authorization != f"Bearer {HUB_TOKEN}":
            return Answer(401)
        path = urllib.parse.unquote(urllib.parse.urlsplit(request.path).path)
        routes: Sequence[tuple[str, Callable[[Path], Answer]]] = (
            (rf"/api/models/{self._name}/tree/main(?:/(.+))?", self._tree),
            (rf"/{self._name}/resolve/main/(.+)", lambda file: _file(file, request)),
        )
        for pattern, answer in routes:
            if match := re.fullmatch(pattern, path):
                found = self._files / (match[1] or "")
                return answer(found) if found.exists() else Answer(404, headers={"X-Error-Code": "EntryNotFound"})
        if path.startswith(f"/api/models/{self._name}"):
            return Answer(body=json.dumps({"id": self._name}).encode())
        return Answer(404, headers={"X-Error-Code": "RepoNotFound"})

    def _tree(self, folder: Path) -> Answer:
        if not folder.is_dir():
            return Answer(404, headers={"X-Error-Code": "EntryNotFound"})
        entries = [
            {
                "type": "directory" if path.is_dir() else "file",
                "path": str(path.relative_to(self._files)),
                "oid": "0" * 40,
                "size": path.stat().st_size,
            }
            for path in sorted(folder.iterdir())
        ]
        return Answer(body=json.dumps(entries).encode())


def _file(file: Path, request: Request) -> Answer:
    first, last = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers["range"]).groups()  # type: ignore[union-attr]
    return Answer(206, file.read_bytes()[int(first) : int(last) + 1])


def _environment(**variables: str) -> dict[str, str]:
    path = f"{REMOTE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    return os.environ | variables | {"PYTHONPATH": path}


def _make_bucket(store: Store) -> None:
    made = store.run("-c", f"import fsspec; fsspec.filesystem({store.scheme!r}).mkdir({store.bucket!r})")
    assert made.returncode == 0, made.stderr


@contextlib.contextmanager
def _server(command: list[str], environment: Mapping[str, str], log: Path) -> Iterator[str]:
    """Runs a server, and gives its address, which it prints."""
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output, env=environment) as server:
        try:
            end = time.monotonic() + HANG_S
            while not (match := re.search(r"http://127\.0\.0\.1:[1-9]\d*", log.read_text())):
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.02)
            yield match[0]
        finally:
            server.terminate()


SERVERS: Mapping[str, Callable[[Path], contextlib.AbstractContextManager[Store]]] = {
    "s3": s3,
    "gs": gs,
    "az": az,
    "hf": hf,
}


def missing(scheme: str) -> str:
    """What a server needs that is not here, "" if nothing is missing."""
    if not REMOTE:
        return "needs the extra remote and local servers, which make remote installs"
    if scheme == "az" and not _AZURITE.exists():
        return "needs Azurite, which make remote installs if there is npm"
    return ""
