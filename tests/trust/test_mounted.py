"""A version's folder that is given as a model's folder, as KServe mounts it: its manifest names the version."""

import json
import logging
import shutil
from pathlib import Path

import pytest

from cnnserve.errors import ModelLoadFailed
from cnnserve.registry.lifecycle import State
from cnnserve.registry.poller import Poller
from cnnserve.registry.registry import Registry
from cnnserve.repository import folders
from cnnserve.repository.show import show
from cnnserve_export import copying
from spoiling import field, lenet5
from support import open_version, write_version


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    """The folder of a model `birds`, which is that of version 4 of the model `zoo`."""
    version = write_version(tmp_path / ".source" / "zoo" / "4")
    return Path(shutil.copytree(version, tmp_path / "birds"))


async def test_its_manifest_names_the_version_and_its_name_is_an_alias(
    tmp_path: Path, birds: Path, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    lenet5(tmp_path)
    with caplog.at_level(logging.INFO):
        await registry.load_all()
    info = registry.get("birds").info
    assert (info.name, info.version) == ("birds", 4)
    assert info.self_test is not None
    assert registry.get("birds", "4").info is info
    assert "model birds is another name of zoo version 4, whose folder was given to it" in caplog.text
    assert "lenet5 is another name" not in caplog.text
    assert "does not name" not in caplog.text


def test_the_origin_of_a_copy_is_told(tmp_path: Path, birds: Path, caplog: pytest.LogCaptureFixture) -> None:
    copied = copying.copy(birds, tmp_path / ".source" / "copied")
    shutil.copytree(copied, tmp_path / "other")
    with caplog.at_level(logging.INFO):
        open_version(folders.find(tmp_path, "other"), 1)
    assert "model other is another name of copied version 1 (a copy of zoo version 4), whose folder" in caplog.text


def test_the_caller_may_choose_any_name(birds: Path) -> None:
    numbered = birds.rename(birds.parent / "7")
    folder = folders.model_folder(numbered, name="finches")
    assert (folder.name, folder.versions, folder.mounted) == ("finches", {4: numbered}, True)
    assert open_version(folder, 4).info.name == "finches"
    # By itself, a number is that of a version.
    assert folders.model_folder(numbered).versions == {}


@pytest.mark.parametrize("with_versions", [False, True])
def test_a_file_of_another_name_than_that_of_the_manifest_is_not_served(birds: Path, with_versions: bool) -> None:
    shutil.copy(birds / "model.onnx", birds / "other.onnx")
    if with_versions:
        write_version(birds / "9")
    models = folders.NamedModels({"own": birds / "model.onnx", "other": birds / "other.onnx"})
    assert open_version(models.folder("own"), 4).info.self_test is not None
    said = (
        r"other\.onnx is not the model of the manifest\.json beside it, which is model\.onnx; name that file, or move"
    )
    with pytest.raises(ModelLoadFailed, match=said):
        open_version(models.folder("other"), 4)


def test_a_folder_with_versions_is_that_of_a_model(tmp_path: Path, birds: Path) -> None:
    write_version(birds / "1")
    (birds / "2").mkdir()
    assert folders.find(tmp_path, "birds").versions == {1: birds / "1", 2: birds / "2"}


async def test_labels_and_config_of_the_model_may_lie_in_it(
    birds: Path, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    (birds / "config.pbtxt").write_text('name: "birds" max_batch_size: 2')
    (birds / "version_labels.json").write_text('{"stable": 4}')
    await registry.load_all()
    assert registry.get("birds", "stable").info.settings.max_batch_size == 2
    assert "does not name" not in caplog.text


@pytest.mark.parametrize("kind", ["broken", "a link to nothing", "a folder", "huge"])
async def test_a_manifest_that_cannot_be_read_is_an_error(birds: Path, registry: Registry, kind: str) -> None:
    manifest = birds / "manifest.json"
    if kind == "broken":
        manifest.write_text('{"version": "four"}')
    elif kind == "huge":
        manifest.write_bytes(b" " * (9 << 20))
    else:
        manifest.unlink()
        manifest.symlink_to("gone") if kind == "a link to nothing" else manifest.mkdir()
    await registry.load_all()
    assert registry.entry("birds").versions[1].state is State.UNAVAILABLE
    assert "manifest.json" in registry.entry("birds").versions[1].reason


async def test_a_change_is_followed(tmp_path: Path, birds: Path, registry: Registry) -> None:
    await registry.load_all()
    poller = Poller(registry, tmp_path, 1.0)

    async def poll() -> None:
        for _ in range(4):
            await poller.poll()
            await poller.settle()

    await poll()
    before = registry.get("birds")
    field("version", 5)(birds)
    await poll()
    assert registry.get("birds").info.version == 5
    assert list(registry.entry("birds").versions) == [5]
    assert registry.get("birds") is not before
    labels = birds / "labels.txt"
    labels.write_text(labels.read_text().upper())
    with pytest.raises(ModelLoadFailed, match=r"labels\.txt was altered"):
        await registry.load("birds")
    # Nothing remains that could be served without a manifest.
    (birds / "manifest.json").unlink()
    with pytest.raises(ModelLoadFailed, match="holds no version folder"):
        await registry.load("birds")


def test_it_is_shown(birds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert show([str(birds), "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["versions"]
    assert (entry["model"], entry["version"], entry["state"]) == ("birds", 4, "intact")
    assert show([str(birds.parent)]) == 0
    assert "birds" in capsys.readouterr().out
