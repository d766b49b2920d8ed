"""Layouts that the server finds by itself: in idle time, kept for the next load, and without losing a request."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from cnnserve.errors import ModelLoadFailed
from cnnserve.images.decoding_pool import DecodingPool
from cnnserve.model.layout_cache import LayoutCache
from cnnserve.model_config.layout import Layout
from cnnserve.registry import automatic_layouts
from cnnserve.registry.automatic_layouts import AutomaticLayouts
from cnnserve.registry.opening import VersionOpener
from cnnserve.registry.registry import Registry
from support import HANG_S, open_files, until, write_version

AUTO = 'parameters { key: "cnnserve.layout" value { string_value: "auto" } }'


@contextlib.asynccontextmanager
async def serving(root: Path, cache: LayoutCache) -> AsyncIterator[Registry]:
    """A registry that finds layouts beside its requests."""
    with DecodingPool(1) as decoders:
        opener = VersionOpener(partial(open_files, layouts=cache, cpu_threads=cache.cpu_threads), decoders)
        registry = Registry(root, opener)
        task = asyncio.create_task(AutomaticLayouts(registry, cache).run())
        try:
            yield registry
        finally:
            task.cancel()
            await asyncio.wait((task,), timeout=HANG_S)
            await registry.close()


def rows(registry: Registry) -> np.ndarray:
    spec = registry.get("m").info.settings.input
    return np.zeros((1, *spec.dims), np.uint8)


async def test_a_layout_is_found_in_idle_time_and_kept(tmp_path: Path) -> None:
    (write_version(tmp_path / "models" / "m" / "1").parent / "config.pbtxt").write_text(AUTO)
    cache = LayoutCache(tmp_path / "cache", 2)
    async with serving(tmp_path / "models", cache) as registry:
        await registry.load_all()
        # READY with today's layout.
        assert registry.get("m").info.wants_layout
        await until(lambda: any((tmp_path / "cache").glob("*.json")))
    async with serving(tmp_path / "models", cache) as registry:
        await registry.load_all()
        assert not registry.get("m").info.wants_layout


async def test_the_switch_loses_no_request(tmp_path: Path) -> None:
    write_version(tmp_path / "m" / "1")
    async with serving(tmp_path, LayoutCache(tmp_path / "cache", 2)) as registry:
        await registry.load_all()
        old = registry.entry("m").newest
        assert old is not None
        ended = False
        answers = 0

        async def client() -> None:
            nonlocal answers
            while not ended:
                await registry.get("m").infer(rows(registry))
                answers += 1

        clients = [asyncio.create_task(client()) for _ in range(4)]
        await until(lambda: answers > 10)
        await registry.renew("m", old)
        before = answers
        await until(lambda: answers > before + 10)
        ended = True
        await asyncio.gather(*clients)
        assert registry.entry("m").newest is not old


async def test_nothing_is_measured_while_there_are_requests(tmp_path: Path) -> None:
    (write_version(tmp_path / "models" / "m" / "1").parent / "config.pbtxt").write_text(AUTO)
    cache = LayoutCache(tmp_path / "cache", 2)
    async with serving(tmp_path / "models", cache) as registry:
        await registry.load_all()
        model = registry.get("m")
        with model._batcher.reserve(1):
            await asyncio.sleep(1)
            assert not any((tmp_path / "cache").glob("*.json"))
        await until(lambda: any((tmp_path / "cache").glob("*.json")))


async def test_nothing_is_measured_while_the_server_is_at_other_work(tmp_path: Path) -> None:
    (write_version(tmp_path / "models" / "m" / "1").parent / "config.pbtxt").write_text(AUTO)
    ended = False

    def work() -> None:
        data = bytes(2**20)
        while not ended:
            hashlib.sha256(data)

    async with serving(tmp_path / "models", LayoutCache(tmp_path / "cache", 2)) as registry:
        working = asyncio.gather(*(asyncio.to_thread(work) for _ in range(4)))
        await registry.load_all()
        await asyncio.sleep(1.2)
        ended = True
        assert not any((tmp_path / "cache").glob("*.json"))
        await working
        await until(lambda: any((tmp_path / "cache").glob("*.json")))


async def test_a_model_that_uses_up_the_time_at_once_keeps_its_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The present layout was measured twice before, and the search died of the second time."""
    monkeypatch.setattr(automatic_layouts, "_BUDGET_S", 0.0)
    (write_version(tmp_path / "models" / "m" / "1").parent / "config.pbtxt").write_text(AUTO)
    async with serving(tmp_path / "models", LayoutCache(tmp_path / "cache", 2)) as registry:
        await registry.load_all()
        present = registry.get("m")
        await until(lambda: any((tmp_path / "cache").glob("*.json")))
        assert registry.get("m") is present


async def test_without_a_writable_cache_the_layout_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (write_version(tmp_path / "models" / "m" / "1").parent / "config.pbtxt").write_text(AUTO)
    (tmp_path / "file").touch()
    async with serving(tmp_path / "models", LayoutCache(tmp_path / "file", 2)) as registry:
        await registry.load_all()
        await until(lambda: "model m version 1 keeps its layout" in caplog.text)
        await registry.get("m").infer(rows(registry))


async def test_a_layout_from_the_cache_is_in_force(tmp_path: Path) -> None:
    (write_version(tmp_path / "m" / "1").parent / "config.pbtxt").write_text(AUTO)
    cache = LayoutCache(tmp_path / "cache", 2)
    async with serving(tmp_path, cache) as registry:
        await registry.load_all()
        await until(lambda: any((tmp_path / "cache").glob("*.json")))
    (kept,) = (tmp_path / "cache").glob("*.json")
    kept.write_text('{"instances": 2, "threads": 1, "batch": 4, "delay_us": 0}')
    async with serving(tmp_path, cache) as registry:
        await registry.load_all()
        assert registry.get("m").instances == 2
        assert registry.get("m").info.settings.policy.preferred_batch_sizes == (4,)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"instances": 3, "threads": 1, "batch": 4, "delay_us": 0}', '{"instances": true}']
)
def test_a_broken_file_of_the_cache_is_none(tmp_path: Path, text: str) -> None:
    cache = LayoutCache(tmp_path, 2)
    cache.put("a", Layout(2, 1, 4))
    assert cache.get("a") == Layout(2, 1, 4)
    (file,) = tmp_path.iterdir()
    file.write_text(text)
    assert cache.get("a") is None
    assert LayoutCache(tmp_path, 4).get("a") is None


async def test_a_stated_layout_and_auto_contradict_each_other(tmp_path: Path, registry: Registry) -> None:
    config = write_version(tmp_path / "m" / "1").parent / "config.pbtxt"
    config.write_text(f"{AUTO} instance_group {{ count: 2 }}")
    with pytest.raises(ModelLoadFailed, match=r"cnnserve\.layout is auto, but instance_group"):
        await registry.load("m")
