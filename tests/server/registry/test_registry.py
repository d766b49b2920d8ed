"""Loads, replacements and failed loads, with real folders and real sessions."""

import asyncio
import dataclasses
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from cnnserve.api.describe import describe
from cnnserve.errors import ModelLoadFailed, ModelNotFound, ModelNotReady, VersionNotFound
from cnnserve.registry.health import Health
from cnnserve.registry.lifecycle import State
from cnnserve.registry.registry import Registry
from cnnserve.repository import manifest as manifests
from support import free_onnx, golden_rows, picture, tiny_onnx, until, write_version


async def answers(registry: Registry, version: str = "") -> int:
    """Returns the version that classifies an image now."""
    model = registry.get("m", version)
    result = await model.classify([picture("bright")], 1)
    [[best]] = result.outcomes
    assert best.label == "bright"
    return model.info.version


def states(registry: Registry) -> dict[int, State]:
    return {number: entry.state for number, entry in registry.entry("m").versions.items()}


async def test_one_broken_model_never_stops_the_others(tmp_path: Path, registry: Registry) -> None:
    write_version(tmp_path / "m" / "1")
    half_copied = write_version(tmp_path / "a_half_copied" / "1")
    content = (half_copied / "model.onnx").read_bytes()
    (half_copied / "model.onnx").write_bytes(content[: len(content) // 2])
    missing = write_version(tmp_path / "b_missing" / "1")
    (missing / "model.onnx").unlink()
    write_version(tmp_path / "c_wrong_config" / "1")
    (tmp_path / "c_wrong_config" / "config.pbtxt").write_text("max_batchsize: 1")
    (tmp_path / "d_garbage" / "1").mkdir(parents=True)
    (tmp_path / "d_garbage" / "1" / "model.onnx").write_text("not a model")
    (tmp_path / ".hidden" / "1").mkdir(parents=True)
    await registry.load_all()
    assert await answers(registry) == 1
    assert [model.name for model in registry.models] == [
        "a_half_copied",
        "b_missing",
        "c_wrong_config",
        "d_garbage",
        "m",
    ]
    reasons = {
        "a_half_copied": "model.onnx has .* bytes, the manifest says",
        "b_missing": "model.onnx is missing",
        "c_wrong_config": "line 1.*max_batchsize",
        "d_garbage": "model.onnx cannot be loaded",
    }
    for name, reason in reasons.items():
        with pytest.raises(ModelNotReady, match=reason) as caught:
            registry.get(name)
        assert str(tmp_path) not in str(caught.value)
    for strict in (False, True):
        health = Health(registry, strict=strict)
        assert not health.is_ready
        health.started()
        assert health.is_ready is not strict


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": tiny_onnx(softmax=False)}, "the manifest says softmax"),
        ({"golden": "wrong"}, "golden image golden.png alone gives class"),
        ({"class_count": "wrong"}, r"FP32 \[-1, 3\], the manifest says FP32 \[-1, 4\]"),
        ({"labels": "wrong"}, "2 labels for 3 classes"),
    ],
)
async def test_the_self_test_keeps_a_wrong_version_out(
    tmp_path: Path, registry: Registry, changes: dict[str, object], said: str
) -> None:
    model = changes.get("model")
    folder = write_version(tmp_path / "m" / "1", model if isinstance(model, bytes) else None)
    manifest = manifests.read(folder)
    assert manifest is not None
    if "golden" in changes or "model" in changes:
        (folder / "golden.bin").write_bytes(manifests.golden_bytes(np.array([[0.9, 0.05, 0.05]])))
    if "class_count" in changes:
        (folder / "golden.bin").write_bytes(manifests.golden_bytes(np.append(golden_rows(folder), [[0.0]], axis=1)))
        output = dataclasses.replace(manifest.output, shape=(4,))
        manifest = dataclasses.replace(manifest, class_count=4, output=output)
    if "labels" in changes:
        (folder / "labels.txt").write_text("dark\nbright\n")
    manifest = dataclasses.replace(manifest, files={name: manifests.digest(folder / name) for name in manifest.files})
    (folder / "manifest.json").write_text(manifests.to_json(manifest))
    await registry.load_all()
    with pytest.raises(ModelNotReady, match=said):
        registry.get("m")


async def test_a_failed_reload_leaves_the_old_version_serving(tmp_path: Path, registry: Registry) -> None:
    folder = write_version(tmp_path / "m" / "1")
    await registry.load_all()
    (folder / "labels.txt").write_text("x\n")
    with pytest.raises(ModelLoadFailed, match=r"model 'm': version 1: file labels\.txt"):
        await registry.load("m")
    assert await answers(registry) == 1
    assert states(registry) == {1: State.READY}
    assert "the reload failed: file labels.txt" in registry.entry("m").versions[1].reason


async def test_a_failed_new_version_leaves_the_old_one_serving(tmp_path: Path, registry: Registry) -> None:
    write_version(tmp_path / "m" / "1")
    await registry.load_all()
    broken = write_version(tmp_path / "m" / "2")
    (broken / "model.onnx").write_bytes(b"half")
    with pytest.raises(ModelLoadFailed, match=r"version 2: file model\.onnx has 4 bytes"):
        await registry.load("m")
    assert await answers(registry) == 1
    assert states(registry) == {1: State.READY, 2: State.UNAVAILABLE}
    with pytest.raises(ModelNotReady, match="version 2 is UNAVAILABLE: file model"):
        registry.get("m", "2")
    shutil.rmtree(broken)
    write_version(tmp_path / "m" / "2")
    await registry.load("m")
    assert await answers(registry) == 2
    assert states(registry) == {2: State.READY}


async def test_unchanged_files_are_not_loaded_again(tmp_path: Path, registry: Registry) -> None:
    folder = write_version(tmp_path / "m" / "1")
    await registry.load_all()
    first = registry.get("m")
    await registry.load("m")
    assert registry.get("m") is first
    (folder / "golden.png").touch()
    await registry.load("m")
    assert registry.get("m") is not first


async def test_replaced_while_in_use(tmp_path: Path, registry: Registry) -> None:
    """No request fails while versions are loaded and unloaded."""
    write_version(tmp_path / "m" / "1")
    await registry.load_all()
    stop = asyncio.Event()
    histories: list[list[int]] = [[] for _ in range(8)]

    async def client(seen: list[int]) -> None:
        while not stop.is_set():
            seen.append(await answers(registry))

    clients = [asyncio.create_task(client(seen)) for seen in histories]
    for number in (2, 3, 4):
        await until(lambda number=number: all(seen[-1:] == [number - 1] for seen in histories))
        write_version(tmp_path / "m" / str(number))
        await registry.load("m")
    await until(lambda: all(seen[-1] == 4 for seen in histories))
    stop.set()
    await asyncio.gather(*clients)
    for seen in histories:
        assert set(seen) == {1, 2, 3, 4}
        assert seen == sorted(seen)


async def test_at_start_no_older_version_takes_the_place_of_one_that_fails(
    tmp_path: Path, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    for version in (1, 2, 3):
        write_version(tmp_path / "m" / str(version))
    (tmp_path / "m" / "3" / "labels.txt").unlink()
    await registry.load_all()
    assert not registry.is_ready("m")
    assert "model m is not served: version 3 failed, and version 2 never takes its place by itself" in caplog.text
    advice = re.findall(r"by (version_policy .*) in config\.pbtxt", caplog.text)
    assert len(advice) == 1
    caplog.clear()
    (tmp_path / "m" / "config.pbtxt").write_text(advice[0])
    await registry.load("m")
    assert registry.get("m").info.version == 2
    # An older version that serves is no reason to say this.
    (tmp_path / "m" / "config.pbtxt").write_text("version_policy { latest { num_versions: 2 } }")
    with pytest.raises(ModelLoadFailed):
        await registry.load("m")
    assert registry.get("m").info.version == 2
    assert "is not served" not in caplog.text


async def test_versions_by_policy(tmp_path: Path, registry: Registry) -> None:
    for number in (1, 2, 10):
        write_version(tmp_path / "m" / str(number))
    (tmp_path / "m" / "config.pbtxt").write_text("version_policy { all {} }")
    await registry.load_all()
    assert [await answers(registry, version) for version in ("", "1", "2", "10")] == [10, 1, 2, 10]
    with pytest.raises(VersionNotFound, match="no version 3; it has 1, 2, 10"):
        registry.get("m", "3")
    for text in ("one", "0", "-1", "1.0", "01", "9" * 30, "١", " 1", "1\n"):
        with pytest.raises(VersionNotFound, match="neither a version number nor a label; it has 1, 2, 10"):
            registry.get("m", text)


@pytest.mark.parametrize("name", ["", "none", "..", "../m", "m/1", ".m", "m\0"])
async def test_names_that_are_no_model(tmp_path: Path, registry: Registry, name: str) -> None:
    write_version(tmp_path / "m" / "1")
    await registry.load_all()
    with pytest.raises(ModelNotFound):
        registry.get(name)
    with pytest.raises(ModelNotFound):
        await registry.load(name)


async def test_unload_and_load_again(tmp_path: Path, registry: Registry) -> None:
    write_version(tmp_path / "m" / "1")
    await registry.load_all()
    await registry.unload("m")
    with pytest.raises(ModelNotReady, match="unloaded"):
        registry.get("m")
    await registry.load("m")
    assert await answers(registry) == 1


async def test_odd_folders_are_told_and_stop_nothing(
    tmp_path: Path, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    write_version(tmp_path / "m" / "1")
    dangling = write_version(tmp_path / "a_dangling" / "1")
    (dangling / "leftover").symlink_to("/nonexistent")
    (tmp_path / "resnet50+aug" / "1").mkdir(parents=True)
    (tmp_path / "link").symlink_to("/nonexistent")
    unreadable = write_version(tmp_path / "b_unreadable" / "1") / "manifest.json"
    unreadable.unlink()
    unreadable.mkdir()
    await registry.load_all()
    assert await answers(registry) == 1
    assert registry.get("a_dangling").info.version == 1
    assert "folder 'resnet50+aug' is ignored: a model name has" in caplog.text
    with pytest.raises(ModelNotReady, match=r"manifest\.json is not a file") as caught:
        registry.get("b_unreadable")
    assert str(tmp_path) not in str(caught.value)


async def test_free_sizes_do_not_break_the_list_of_models(tmp_path: Path, registry: Registry) -> None:
    folder = tmp_path / "m" / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(free_onnx())
    await registry.load_all()
    assert registry.get("m").info.class_count == 0
    assert describe(registry.entry("m"), labels=True).versions[0].class_count == 0
