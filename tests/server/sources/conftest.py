"""Packs, and servers that have them."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from certificates import Authority
from cnnserve.sources import packing
from support import REPOSITORY
from web_servers import OciRegistry

VERSION = REPOSITORY / "lenet5" / "1"


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packs of LeNet-5: `layout`, `pack.tar` and `modelcar`."""
    folder = tmp_path_factory.mktemp("packs")
    packing.pack(VERSION, folder / "layout")
    packing.pack(VERSION, folder / "pack.tar")
    packing.pack(VERSION, folder / "modelcar", modelcar=True)
    return folder


@pytest.fixture
def layout(made: Path, tmp_path: Path) -> Path:
    """A layout of its own, to spoil."""
    return shutil.copytree(made / "layout", tmp_path / "layout")


@pytest.fixture
def trusted(authority: Authority, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trusts the tests' authority, and has no logins of whoever runs the tests. Returns the home folder."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.root))
    monkeypatch.setenv("HOME", str(home))
    for name in ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "NETRC", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    return home


@pytest.fixture
def registry(authority: Authority, made: Path, trusted: Path) -> Iterator[OciRegistry]:
    """A registry with the pack, for everybody who has fetched a token."""
    registry = OciRegistry(authority, made / "layout")
    yield registry
    registry.site.close()
