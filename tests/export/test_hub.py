import dataclasses
import hashlib
import io
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch

from cnnserve.repository import manifest as manifests
from cnnserve_export import checkpoints, hub, labels
from cnnserve_export.architectures import ARCHITECTURES
from cnnserve_export.cli import export
from cnnserve_export.errors import ExportError
from cnnserve_export.hub import Published

DATA = bytes(range(256)) * 10_000
PREFIX = hashlib.sha256(DATA).hexdigest()[:8]


class Publisher(BaseHTTPRequestHandler):
    """Serves /good/…, /cut/… (half of the file) and /unsized/… (without Content-Length). Other paths do not exist."""

    def do_GET(self) -> None:
        kind = self.path.split("/")[1]
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        if kind not in ("good", "cut", "unsized"):
            self.send_error(404)
            return
        self.send_response(200)
        if kind != "unsized":
            self.send_header("Content-Length", str(len(DATA)))
        self.end_headers()
        self.wfile.write(DATA[: len(DATA) // 2] if kind == "cut" else DATA)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def publishing() -> Iterator[HTTPServer]:
    with HTTPServer(("127.0.0.1", 0), Publisher) as server:
        server.asked = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def publisher(monkeypatch: pytest.MonkeyPatch) -> Iterator[HTTPServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with publishing() as server:
        yield server


def silent(done: int, size: int) -> None:
    pass


def entry(server: HTTPServer, kind: str, prefix: str = PREFIX) -> Published:
    return Published("tiny", "imagenet-v1", f"http://127.0.0.1:{server.server_port}/{kind}/tiny-{prefix}.pth")


@pytest.mark.parametrize("kind", ["good", "unsized"])
def test_a_missing_file_is_downloaded_once(kind: str, publisher: HTTPServer, tmp_path: Path) -> None:
    folder, told = tmp_path / "hub" / "checkpoints", list[tuple[int, int]]()
    for _ in range(2):
        path = hub.fetch(entry(publisher, kind), folder, lambda done, size: told.append((done, size)))
        assert path == folder / f"tiny-{PREFIX}.pth"
        assert path.read_bytes() == DATA
    assert publisher.asked == [f"/{kind}/tiny-{PREFIX}.pth"]  # type: ignore[attr-defined]
    assert [path.name for path in folder.iterdir()] == [f"tiny-{PREFIX}.pth"]
    size = len(DATA) if kind == "good" else 0
    assert told == [(1 << 20, size), (2 << 20, size), (len(DATA), size)]


@pytest.mark.parametrize(
    ("kind", "prefix", "message"),
    [
        ("good", "00000000", rf"not the published file: its SHA-256 begins with {PREFIX}, not with 00000000"),
        (
            "cut",
            PREFIX,
            r"the connection ended after 1,280,000 of 2,560,000 bytes; download the file elsewhere",
        ),
        ("none", PREFIX, r"cannot be downloaded: http://127.*\.pth: the server returned status 404"),
    ],
)
def test_a_download_that_fails_leaves_nothing(
    kind: str, prefix: str, message: str, publisher: HTTPServer, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=message):
        hub.fetch(entry(publisher, kind, prefix), tmp_path, silent)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_download_leaves_nothing(publisher: HTTPServer, tmp_path: Path) -> None:
    def interrupt(done: int, size: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hub.fetch(entry(publisher, "good"), tmp_path, interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_publisher_that_is_not_there_is_named(tmp_path: Path) -> None:
    with publishing() as gone:
        published = entry(gone, "good")
    with pytest.raises(ExportError, match=r"127\.0\.0\.1:\d+/good/.*refused; download the file .* and put it at /"):
        hub.fetch(published, tmp_path, silent)


def test_a_cache_that_cannot_be_written_is_named(publisher: HTTPServer, tmp_path: Path) -> None:
    (tmp_path / "hub").write_text("a file")
    with pytest.raises(
        ExportError, match=rf"tiny-{PREFIX}\.pth cannot be written to .*hub/checkpoints: Not a directory"
    ):
        hub.fetch(entry(publisher, "good"), tmp_path / "hub" / "checkpoints", silent)


def test_a_cache_without_permission_is_named(publisher: HTTPServer, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with (
        as_an_ordinary_user(),
        pytest.raises(ExportError, match=r"Permission denied; set TORCH_HOME to another folder"),
    ):
        hub.fetch(entry(publisher, "good"), tmp_path, silent)


@contextmanager
def as_an_ordinary_user() -> Iterator[None]:
    """Runs the block as an ordinary user: root may write anywhere, and container builds run the tests as root."""
    own = os.geteuid()
    if own == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(own)


@pytest.mark.parametrize(
    ("architecture", "word", "edition", "resize"),
    [
        ("resnet50", "imagenet", "IMAGENET1K_V2", 232),
        ("resnet50", "imagenet-v1", "IMAGENET1K_V1", 256),
        ("resnet18", "imagenet", "IMAGENET1K_V1", 256),
    ],
)
def test_imagenet_means_the_newest_edition(architecture: str, word: str, edition: str, resize: int) -> None:
    published = hub.find(architecture, word)
    assert (published.edition, published.resize) == (edition, resize)


def test_what_is_not_published_is_named() -> None:
    with pytest.raises(ExportError, match="no imagenet-v2 weights for resnet18; use --weights imagenet-v1"):
        hub.find("resnet18", "imagenet-v2")
    with pytest.raises(ExportError, match="no published ImageNet weights for lenet5, only for alexnet, googlenet"):
        hub.find("lenet5", "imagenet")


def test_every_entry_names_its_digest() -> None:
    assert {published.architecture for published in hub.PUBLISHED} == ARCHITECTURES.keys() - {"lenet5"}
    for published in hub.PUBLISHED:
        assert len(bytes.fromhex(published.sha256_prefix)) == 4
        assert published.url.startswith("https://")
        assert hub.recognise(published.architecture, published.sha256_prefix + 56 * "0") == published
    assert hub.recognise("alexnet", 64 * "0") is None


@pytest.fixture
def resnet18_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint in place of ResNet-18's in torch's cache. The table has its digest, as if it were published."""
    buffer = io.BytesIO()
    torch.save(checkpoints.build(ARCHITECTURES["resnet18"], 1000, seed=1).state_dict(), buffer)
    name = f"resnet18-{hashlib.sha256(buffer.getvalue()).hexdigest()[:8]}.pth"
    path = tmp_path / "torch" / "hub" / "checkpoints" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(buffer.getvalue())
    published = dataclasses.replace(hub.find("resnet18", "imagenet"), url=f"https://127.0.0.1:1/{name}", resize=232)
    monkeypatch.setattr(hub, "PUBLISHED", (published,))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return path


def test_published_weights_given_as_a_file_are_recognised(resnet18_in_the_cache: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.pth"
    resnet18_in_the_cache.rename(mine)
    flags = f"--weights {mine} --repository {tmp_path}/models --max-batch-size 1"
    assert export(["resnet18", *flags.split()]) == 0
    manifest = manifests.read(tmp_path / "models" / "resnet18" / "1")
    assert manifest is not None
    assert manifest.preprocessing.resize is not None
    assert manifest.preprocessing.resize.size == (232,)
    assert manifest.weights["source"] == "torchvision"
    assert (manifest.weights["file"], manifest.weights["edition"]) == ("mine.pth", "IMAGENET1K_V1")
    assert (tmp_path / "models/resnet18/1/labels.txt").read_bytes() == labels.IMAGENET_FILE.read_bytes()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--num-classes 10", "the file has 1000 classes, the network has 10; pass --num-classes 1000"),
        ("", "is not the published file: its SHA-256 begins with"),
    ],
)
def test_published_weights_that_do_not_do_leave_nothing(
    flags: str, message: str, resnet18_in_the_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not flags:
        with resnet18_in_the_cache.open("ab") as file:
            file.write(b"!")
    assert export(["resnet18", "--weights", "imagenet", *flags.split(), "--repository", str(tmp_path / "models")]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "models").exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become a user without an entry")
def test_without_a_home_folder_there_is_no_folder_called_tilde(tmp_path: Path) -> None:
    # Neither HOME nor an entry in the user database, as in many containers.
    environment = {key: text for key, text in os.environ.items() if key not in ("HOME", "TORCH_HOME", "XDG_CACHE_HOME")}
    command = [sys.executable, "-c", "import os; from cnnserve_export import hub; os.setuid(54321); hub.cache()"]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert "this user has no home folder for downloaded weights; set TORCH_HOME" in ended.stderr
    assert not list(tmp_path.iterdir())
