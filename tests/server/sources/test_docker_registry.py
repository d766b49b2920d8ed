"""Pulls from the registry that most others are made from (Debian's package docker-registry), with TLS and a password.

The pack is pushed with the requests that the distribution specification names.
"""

import http.client
import json
import re
import shutil
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from certificates import Authority
from cnnserve.sources.errors import SourceError
from cnnserve.sources.pull import pull
from cnnserve.sources.room import Room
from pulls import names, pulled
from support import HANG_S
from web_servers import basic

PROGRAM = shutil.which("docker-registry") or shutil.which("registry")
LOGIN = ("reader", "password")
# As htpasswd -B writes it: bcrypt of this password.
HTPASSWD = "reader:$2b$05$abcdefghijklmnopqrstuuWG29KuyeAicPCJODk1zjyGvyQUU2awu"


@pytest.fixture(scope="module")
def address(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The host and the port of a registry that wants a password."""
    if PROGRAM is None:
        pytest.skip("needs a registry: apt-get install docker-registry")
    folder = tmp_path_factory.mktemp("registry")
    files = authority.issue("registry")
    config = {
        "version": "0.1",
        "storage": {"filesystem": {"rootdirectory": str(folder / "storage")}},
        "http": {"addr": "127.0.0.1:0", "tls": {"certificate": str(files.certificate), "key": str(files.key)}},
        "auth": {"htpasswd": {"realm": "registry", "path": str(folder / "htpasswd")}},
    }
    (folder / "htpasswd").write_text(HTPASSWD + "\n")
    (folder / "config.yml").write_text(json.dumps(config))
    log = folder / "log"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [PROGRAM, "serve", str(folder / "config.yml")], stdout=output, stderr=output, cwd=folder
        ) as process,
    ):
        try:
            yield f"127.0.0.1:{_port(log, process)}"
        finally:
            process.terminate()


def _port(log: Path, process: "subprocess.Popen[bytes]") -> int:
    end = time.monotonic() + HANG_S
    while time.monotonic() < end and process.poll() is None:
        if match := re.search(r"listening on 127\.0\.0\.1:(\d+), tls", log.read_text()):
            return int(match[1])
        time.sleep(0.02)
    raise AssertionError(log.read_text())


def push(layout: Path, address: str, name: str, authority: Authority) -> None:
    """Puts the blobs and the manifests of a layout into the registry, under the tag 1."""
    context = ssl.create_default_context(cafile=str(authority.root))
    connection = http.client.HTTPSConnection(address, context=context, timeout=HANG_S)

    def send(method: str, url: str, body: bytes = b"", content_type: str = "application/octet-stream") -> str:
        connection.request(method, url, body, {"Authorization": basic(*LOGIN), "Content-Type": content_type})
        with connection.getresponse() as response:
            assert response.status in (201, 202), response.read()
            response.read()
            return response.headers.get("Location", "")

    (top,) = json.loads((layout / "index.json").read_bytes())["manifests"]
    documents = {}
    for path in sorted((layout / "blobs" / "sha256").iterdir()):
        data = path.read_bytes()
        kind = json.loads(data).get("mediaType", "") if data.startswith(b"{") else ""
        if kind.startswith("application/vnd.oci.image."):
            documents[f"sha256:{path.name}"] = (kind, data)
        else:
            place = send("POST", f"/v2/{name}/blobs/uploads/")
            send("PUT", f"{place}&digest=sha256:{path.name}", data)
    # An index comes after what it names.
    for digest, (kind, data) in sorted(documents.items(), key=lambda item: item[0] == top["digest"]):
        send("PUT", f"/v2/{name}/manifests/{'1' if digest == top['digest'] else digest}", data, kind)
    connection.close()


@pytest.mark.parametrize("name", ["layout", "modelcar"])
def test_a_pack_in_a_registry_of_others(
    name: str, address: str, made: Path, authority: Authority, trusted: Path, tmp_path: Path
) -> None:
    push(made / name, address, f"models/{name}", authority)
    source = f"oci://{address}/models/{name}:1"
    with pytest.raises(SourceError, match=r"wants a user name and a password \(status 401\): log in with docker login"):
        pull(source, tmp_path / "models", Room())
    assert names(tmp_path / "models") == []
    (trusted / ".docker").mkdir()
    logins = {"auths": {address: {"auth": basic(*LOGIN).removeprefix("Basic ")}}}
    (trusted / ".docker" / "config.json").write_text(json.dumps(logins))
    pulled(source, tmp_path / "models")
    with pytest.raises(SourceError, match=r"manifests/2 does not exist \(status 404\)"):
        pull(f"oci://{address}/models/{name}:2", tmp_path / "other", Room())
