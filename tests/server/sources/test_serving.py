"""`cnnserve serve` with an address in place of a model repository."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cnnserve.config.settings import Address, ConfigError
from cnnserve.config.sources import from_sources
from cnnserve.sources.errors import SourceError
from cnnserve.sources.pull import pull_whole
from cnnserve.sources.room import Room
from cnnserve_client import Client
from pulls import names, same
from support import HANG_S, REPOSITORY, serving
from web_servers import OciRegistry

VERSION = REPOSITORY / "lenet5" / "1"


def test_an_address_is_pulled_and_then_served(registry: OciRegistry, trusted: Path, tmp_path: Path) -> None:
    arguments = ["--pull-cache", tmp_path / "cache"]
    for said in ("was pulled", "has not changed since it was pulled"):
        registry.site.requests.clear()
        with serving(tmp_path / "log", registry.address, *arguments) as server:
            asked = len(registry.site.requests)
            with Client(server.address) as client:
                assert client.classify(VERSION / "golden.png", model="lenet5").results[0].top.label == "3"
            # Nothing is fetched at request time.
            assert len(registry.site.requests) == asked
            assert f"pulling {registry.address} into {tmp_path / 'cache'}" in server.log
            assert f"{registry.address} {said}; the server serves" in server.log
        # At the second start only the manifest.
        assert (asked == 3) == (said != "was pulled")
    assert len(names(tmp_path / "cache")) == 1


def test_what_cannot_be_pulled_is_not_served(registry: OciRegistry, trusted: Path, tmp_path: Path) -> None:
    address = f"oci://{registry.host}/models/lenet5:2"
    flags = ["--repository", address, "--pull-cache", str(tmp_path / "cache")]
    command = [sys.executable, "-m", "cnnserve", "serve", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, check=False)
    assert done.returncode == 1
    assert f"{address} cannot be served: https://{registry.host}/v2/models/lenet5/manifests/2 does not" in done.stderr
    assert "Traceback" not in done.stderr
    assert names(tmp_path / "cache") == []


def test_polling_an_address_is_refused() -> None:
    with pytest.raises(ConfigError, match="'s3://bucket/models', pulled once at the start, but model_control_mode is"):
        from_sources(["--repository", "s3://bucket/models", "--model-control-mode", "poll"], {})


def test_an_address_is_a_setting_as_every_other() -> None:
    for config in (
        from_sources(["--repository", "s3://bucket/models"], {}),
        from_sources([], {"CNNSERVE_REPOSITORY": "s3://bucket/models"}),
    ):
        assert config.repository == Address("s3://bucket/models")
        assert isinstance(config.repository, Address)


def whole(source: Path, cache: Path) -> tuple[Path, bool]:
    return pull_whole(str(source), cache, Room())


@pytest.mark.parametrize("name", ["layout", "pack.tar"])
def test_the_cache_keeps_each_content_once(name: str, made: Path, tmp_path: Path) -> None:
    first, new = whole(made / name, tmp_path)
    assert new
    same(REPOSITORY, first)
    assert whole(made / name, tmp_path) == (first, False)
    assert names(tmp_path) == [first.name]


def test_a_change_of_a_repository_is_another_content(tmp_path: Path) -> None:
    source = shutil.copytree(REPOSITORY, tmp_path / "source")
    cache = tmp_path / "cache"
    first, _ = whole(source, cache)
    assert whole(source, cache) == (first, False)
    config = source / "lenet5" / "config.pbtxt"
    config.write_text(config.read_text() + "# more\n")
    second, new = whole(source, cache)
    assert new
    same(source, second)
    same(REPOSITORY, first)
    shutil.rmtree(source / "lenet5")
    with pytest.raises(SourceError, match=r"no manifest\.json in 0 files"):
        whole(source, cache)


def test_a_cache_that_cannot_be_written(made: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("x")
    with pytest.raises(SourceError, match="cache cannot be written: "):
        whole(made / "layout", tmp_path / "cache")


def test_an_altered_cache_is_found_by_the_load(registry: OciRegistry, trusted: Path, tmp_path: Path) -> None:
    cached, _ = pull_whole(registry.address, tmp_path / "cache", Room())
    (cached / "lenet5" / "1" / "labels.txt").write_text("x")
    with serving(tmp_path / "log", registry.address, "--pull-cache", tmp_path / "cache") as server:
        assert "labels.txt has 1 bytes, the manifest says 20" in server.log
