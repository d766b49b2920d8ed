"""Model repositories as Kubernetes and KServe mount them: symlinks of a ConfigMap, folders that nobody may write."""

import shutil
from pathlib import Path

import pytest

from cnnserve.config.settings import ConfigError, ServerConfig
from cnnserve.repository import layout
from cnnserve_client import Client
from support import REPOSITORY, rewrite_manifest, serving


def served(address: str) -> list[tuple[str, list[str]]]:
    with Client(address) as client:
        return [(model.name, [version.version for version in model.versions]) for model in client.list_models()]


def projected(root: Path, stamp: str, *versions: int) -> None:
    """Fills `root` as the kubelet fills a volume: a hidden folder, a link to it, links to its files."""
    for version in versions:
        folder = root / stamp / "lenet5" / str(version)
        shutil.copytree(REPOSITORY / "lenet5" / "1", folder)
        rewrite_manifest(folder, version=version)
    shutil.copy(REPOSITORY / "lenet5" / "config.pbtxt", root / stamp / "lenet5")
    (root / "..data_tmp").symlink_to(stamp)
    (root / "..data_tmp").rename(root / "..data")
    if not (root / "lenet5").is_symlink():
        (root / "lenet5").symlink_to("..data/lenet5")


def test_a_projected_volume_is_a_repository_whose_change_is_one_rename(tmp_path: Path) -> None:
    root = tmp_path / "models"
    root.mkdir()
    projected(root, "..2026_11_29_01", 1)
    flags = ("--model-control-mode", "poll", "--poll-interval-s", "0.2")
    with serving(tmp_path / "log", root, *flags) as server:
        assert served(server.address) == [("lenet5", ["1"])]
        projected(root, "..2026_11_29_02", 1, 2)
        shutil.rmtree(root / "..2026_11_29_01")
        server.wait_for(r"model lenet5 version 2 READY")
        assert "lenet5" in [name for name, _ in served(server.address)]


@pytest.mark.parametrize("mounted", [".", "lenet5", "lenet5/1"])
def test_a_server_takes_whatever_kserve_mounts(tmp_path: Path, mounted: str) -> None:
    """A model repository has the names of its models; one model or version has the name of the InferenceService."""
    copy = tmp_path / "models"
    shutil.copytree(REPOSITORY, copy)
    before = sorted(copy.rglob("*"))
    for path in before:
        path.chmod(0o555 if path.is_dir() else 0o444)
    with serving(tmp_path / "log", copy / mounted, "--single-model-name", "digits") as server:
        name = "lenet5" if mounted == "." else "digits"
        assert served(server.address) == [(name, ["1"])]
        with Client(server.address) as client:
            assert client.is_healthy(name), server.log
            assert client.classify(REPOSITORY / "lenet5" / "1" / "golden.png", model=name, top_k=1).results[0].ok
    # Nothing was written beside the models.
    assert sorted(copy.rglob("*")) == before


def test_what_is_no_single_model_is_a_repository(tmp_path: Path) -> None:
    assert not layout.is_single(tmp_path)
    assert not layout.is_single(tmp_path / "missing")
    assert not layout.is_single(REPOSITORY)
    assert layout.is_single(REPOSITORY / "lenet5")
    assert layout.is_single(REPOSITORY / "lenet5" / "1")


def test_the_name_is_a_model_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"single_model_name is '\.\./x', expected at most 128 letters"):
        ServerConfig(repository=tmp_path, single_model_name="../x")
