"""The conditions under which the server is SERVING."""

import asyncio
import shutil
import threading
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from cnnserve.errors import ModelLoadFailed
from cnnserve.registry.health import Health
from cnnserve.registry.registry import Registry
from cnnserve.repository import folders
from cnnserve.repository.folders import ModelFolder
from support import HANG_S, write_version


def broken(folder: Path) -> None:
    (write_version(folder) / "model.onnx").write_text("no model")


@pytest.mark.parametrize("strict", [False, True])
async def test_what_comes_after_the_start_takes_no_readiness_away(
    tmp_path: Path, registry: Registry, strict: bool
) -> None:
    write_version(tmp_path / "m" / "1")
    health = Health(registry, strict=strict)
    seen = set()
    registry.on_change(lambda: seen.add(health.is_ready))
    await registry.load_all()
    assert seen == {False}
    health.started()
    seen.clear()
    write_version(tmp_path / "m" / "2")
    await registry.load("m")
    broken(tmp_path / "m" / "3")
    with pytest.raises(ModelLoadFailed):
        await registry.load("m")
    broken(tmp_path / "new" / "1")
    with pytest.raises(ModelLoadFailed):
        await registry.load("new")
    assert seen == {True}


async def test_strict_counts_the_models_of_the_start_that_are_still_wanted(tmp_path: Path, registry: Registry) -> None:
    write_version(tmp_path / "a" / "1")
    broken(tmp_path / "b" / "1")
    await registry.load_all()
    loose, strict = Health(registry, strict=False), Health(registry, strict=True)
    for health in (loose, strict):
        health.started()
    assert (loose.is_ready, strict.is_ready) == (True, False)
    await registry.unload("b")
    assert (loose.is_ready, strict.is_ready) == (True, True)
    shutil.rmtree(tmp_path / "a")
    await registry.remove("a")
    assert (loose.is_ready, strict.is_ready) == (False, False)


async def test_where_models_come_by_call_an_empty_server_serves(tmp_path: Path, registry: Registry) -> None:
    broken(tmp_path / "m" / "1")
    await registry.load_all(names=())
    by_call, other = Health(registry, strict=True, may_be_empty=True), Health(registry, strict=False)
    for health in (by_call, other):
        health.started()
    assert (by_call.is_ready, other.is_ready) == (True, False)
    # Otherwise, after one failed load no client would call the server for another load.
    with pytest.raises(ModelLoadFailed):
        await registry.load("m")
    assert by_call.is_ready
    by_call.drain()
    assert not by_call.is_ready


async def test_a_start_that_was_to_load_and_did_not_is_not_ready(tmp_path: Path, registry: Registry) -> None:
    broken(tmp_path / "m" / "1")
    await registry.load_all(names=["m"])
    health = Health(registry, strict=False, may_be_empty=True)
    health.started()
    assert not health.is_ready


async def test_a_watch_may_begin_before_the_model_repository_is_listed(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_version(tmp_path / "m" / "1")
    scan, looked, gate = folders.scan, threading.Event(), threading.Event()

    def held(*arguments: Any) -> list[ModelFolder]:
        looked.set()
        gate.wait(HANG_S)
        return scan(*arguments)

    monkeypatch.setattr(folders, "scan", held)
    health = Health(registry, strict=False)
    start = asyncio.create_task(registry.load_all())
    await asyncio.to_thread(looked.wait, HANG_S)
    async with aclosing(health.watch("m")) as known, aclosing(health.watch("nobody")) as unknown:
        assert (await anext(known), await anext(unknown)) == (False, False)
        gate.set()
        assert (await anext(known), await anext(unknown)) == (True, None)
    await start
