"""Kind: an unverified version replaces a verified one."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cnnserve.errors import ModelLoadFailed, ModelNotReady
from cnnserve.registry.lifecycle import State
from cnnserve.registry.poller import Poller
from cnnserve.registry.registry import Registry
from cnnserve.repository import manifest as manifests
from cnnserve.repository.folders import find
from spoiling import lenet5
from support import tiny_onnx, write_version

REFUSED = (
    "it has no manifest.json, but the model has or had a version with one; export or import it with cnnserve, or set "
    "the parameter cnnserve.allow_unverified in the model's config file to true"
)
ALLOWED = 'parameters { key: "cnnserve.allow_unverified" value { string_value: "true" } }\n'


def unverified(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(tiny_onnx())
    return folder


def without_manifest(root: Path) -> None:
    (root / "m" / "1" / "manifest.json").unlink()


def next_version(root: Path) -> None:
    unverified(root / "m" / "2")


def another_in_its_place(root: Path) -> None:
    shutil.rmtree(root / "m" / "1")
    unverified(root / "m" / "1")


def renamed_manifest(root: Path) -> None:
    (root / "m" / "1" / "manifest.json").rename(root / "m" / "1" / ".manifest.json")


CHANGES: list[Callable[[Path], None]] = [without_manifest, next_version, another_in_its_place, renamed_manifest]


async def polled(registry: Registry, root: Path) -> Poller:
    poller = Poller(registry, root, 1.0)
    for _ in range(4):
        await poller.poll()
        await poller.settle()
    return poller


def reasons(registry: Registry) -> str:
    return "; ".join(version.reason for version in registry.entry("m").versions.values())


@pytest.mark.parametrize("change", CHANGES)
async def test_it_is_refused_while_the_server_runs(
    tmp_path: Path, registry: Registry, change: Callable[[Path], None]
) -> None:
    write_version(tmp_path / "m" / "1")
    await registry.load_all()
    served = registry.get("m")
    change(tmp_path)
    with pytest.raises(ModelLoadFailed, match=REFUSED):
        await registry.load("m")
    await polled(registry, tmp_path)
    assert REFUSED in reasons(registry)
    # What was verified serves on.
    assert registry.get("m") is served
    await registry.unload("m")
    with pytest.raises(ModelLoadFailed, match=REFUSED):
        await registry.load("m")
    with pytest.raises(ModelNotReady):
        registry.get("m")


async def test_polling_refuses_it(tmp_path: Path, registry: Registry) -> None:
    version = write_version(tmp_path / "m" / "1")
    await registry.load_all()
    (version / "model.onnx").write_bytes(tiny_onnx(softmax=False))
    poller = await polled(registry, tmp_path)
    assert "model.onnx" in reasons(registry)
    (version / "manifest.json").unlink()
    for _ in range(4):
        await poller.poll()
        await poller.settle()
    assert REFUSED in reasons(registry)
    assert registry.get("m").info.manifest is not None


async def test_a_folder_added_to_a_mounted_version_does_not_replace_it(tmp_path: Path, registry: Registry) -> None:
    shutil.copytree(write_version(tmp_path / ".source" / "m" / "1"), tmp_path / "m")
    poller = await polled(registry, tmp_path)
    unverified(tmp_path / "m" / "2")
    for _ in range(4):
        await poller.poll()
        await poller.settle()
    assert registry.get("m").info.self_test is not None
    assert [entry.version for entry in registry.entry("m").versions.values()] == [1]


async def test_nor_is_it_served_at_start(tmp_path: Path, registry: Registry) -> None:
    shutil.copytree(write_version(tmp_path / ".source" / "m" / "1"), tmp_path / "m")
    unverified(tmp_path / "m" / "2")
    await registry.load_all()
    assert registry.get("m").info.self_test is not None


async def test_a_model_that_was_gone_is_not_forgotten(tmp_path: Path, registry: Registry) -> None:
    write_version(tmp_path / "m" / "1")
    await registry.load_all()
    poller = await polled(registry, tmp_path)
    (tmp_path / "m").rename(tmp_path / ".away")
    for _ in range(3):
        await poller.poll()
        await poller.settle()
    assert [model.name for model in registry.models] == []
    unverified(tmp_path / "m" / "1")
    for _ in range(4):
        await poller.poll()
        await poller.settle()
    assert REFUSED in reasons(registry)


@pytest.mark.parametrize("known", ["a good one", "a broken one", "a link to nothing", "a folder", "not asked for"])
async def test_at_start_any_manifest_counts(tmp_path: Path, registry: Registry, known: str) -> None:
    """Version 2 is newer, and has none."""
    manifest = write_version(tmp_path / "m" / "1") / "manifest.json"
    unverified(tmp_path / "m" / "2")
    if known != "a good one":
        manifest.unlink()
    if known == "a broken one":
        manifest.write_text("{")
    elif known == "a link to nothing":
        manifest.symlink_to("gone")
    elif known == "a folder":
        manifest.mkdir()
    elif known == "not asked for":
        manifest.write_text("{}")
        await registry.load_all([])
        manifest.unlink()
        with pytest.raises(ModelLoadFailed, match=REFUSED):
            await registry.load("m")
        return
    await registry.load_all()
    assert registry.entry("m").versions[2].state is State.UNAVAILABLE
    assert REFUSED in reasons(registry)


@pytest.mark.parametrize("kind", ["a link to nothing", "a link out", "a folder", "a pipe", "unreadable"])
async def test_a_manifest_that_cannot_be_read_is_an_error(tmp_path: Path, registry: Registry, kind: str) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.pbtxt").write_text(ALLOWED)
    manifest = write_version(tmp_path / "m" / "1") / "manifest.json"
    outside = manifest.rename(tmp_path / ".elsewhere")
    if kind == "a folder":
        manifest.mkdir()
    elif kind == "a pipe":
        os.mkfifo(manifest)
    elif kind == "unreadable":
        # Every user can list the folder, no user can follow the link to its end.
        manifest.symlink_to(manifest.name)
    else:
        manifest.symlink_to("gone" if kind == "a link to nothing" else outside)
    await registry.load_all()
    assert registry.entry("m").versions[1].state is State.UNAVAILABLE
    assert "manifest.json" in reasons(registry)
    assert REFUSED not in reasons(registry)


async def test_the_config_file_can_allow_it(tmp_path: Path, registry: Registry) -> None:
    write_version(tmp_path / "m" / "1")
    await registry.load_all()
    unverified(tmp_path / "m" / "2")
    with pytest.raises(ModelLoadFailed, match=REFUSED):
        await registry.load("m")
    (tmp_path / "m" / "config.pbtxt").write_text(ALLOWED)
    await registry.load("m")
    assert registry.get("m").info.manifest is None
    # Also if a load call brings another config.
    (tmp_path / "m" / "2" / "model.onnx").write_bytes(tiny_onnx(softmax=False))
    await registry.load("m", '{"maxBatchSize": 2}')
    assert registry.get("m").info.settings.max_batch_size == 2


@pytest.mark.parametrize("value", ["false", "0", "si"])
async def test_another_value_does_not_allow_it(tmp_path: Path, registry: Registry, value: str) -> None:
    write_version(tmp_path / "m" / "1")
    unverified(tmp_path / "m" / "2")
    (tmp_path / "m" / "config.pbtxt").write_text(ALLOWED.replace("true", value))
    with pytest.raises(ModelLoadFailed, match="allow_unverified"):
        await registry.load("m")


async def test_a_load_call_cannot_allow_it(tmp_path: Path, registry: Registry) -> None:
    write_version(tmp_path / "m" / "1")
    await registry.load_all()
    unverified(tmp_path / "m" / "2")
    config = json.dumps({"parameters": {"cnnserve.allow_unverified": {"stringValue": "true"}}})
    said = r"parameter config: no load call can set cnnserve\.allow_unverified; set it in the model's config\.pbtxt"
    with pytest.raises(ModelLoadFailed, match=said):
        await registry.load("m", config)
    with pytest.raises(ModelLoadFailed, match=REFUSED):
        await registry.load("m", "{}")


async def test_a_model_that_never_had_a_manifest_is_served(tmp_path: Path, registry: Registry) -> None:
    unverified(tmp_path / "m" / "1")
    lenet5(tmp_path)
    await registry.load_all()
    unverified(tmp_path / "m" / "2")
    await registry.load("m")
    assert registry.get("m").info.version == 2


def test_a_version_that_cannot_be_looked_at_may_have_one(tmp_path: Path) -> None:
    unverified(tmp_path / "m" / "1")
    assert not manifests.any_manifest(find(tmp_path, "m"))
    (tmp_path / "m" / "2").symlink_to(unverified(tmp_path / "elsewhere"))
    assert manifests.any_manifest(find(tmp_path, "m"))
