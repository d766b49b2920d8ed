"""No manifest is read on the event loop, whatever asks for it."""

import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from cnnserve.api.describe import describe
from cnnserve.registry.control import ModelControl
from cnnserve.registry.poller import Poller
from cnnserve.registry.registry import Registry
from spoiling import field, lenet5
from support import write_version

# Threads that opened a manifest, while a test watches.
_threads: list[threading.Thread] = []
_watching = threading.Event()


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    # `os.open` has no mode.
    if event == "open" and _watching.is_set() and arguments[0] == "manifest.json" and arguments[1] is None:
        _threads.append(threading.current_thread())


@pytest.fixture(scope="module", autouse=True)
def _hooked() -> None:
    # No audit hook can be removed; this one does nothing unless a test watches.
    sys.addaudithook(_hook)


async def test_manifests_are_read_on_threads(tmp_path: Path, registry: Registry) -> None:
    lenet5(tmp_path)
    write_version(tmp_path / "tiny" / "1")
    control = ModelControl(registry, tmp_path, mode="explicit", allowed=True)
    poller = Poller(registry, tmp_path, 1.0)
    _threads.clear()
    _watching.set()
    try:
        await registry.load_all()
        loaded = len(_threads)
        write_version(tmp_path / "late" / "1")
        (tmp_path / "tiny" / "1" / "notes.txt").write_text("a change")
        for _ in range(4):
            await poller.poll()
            await poller.settle()
        polled = len(_threads)
        for model in await control.index():
            describe(model, labels=True)
        await control.load("lenet5")
        await control.unload("tiny")
        await control.load("tiny")
    finally:
        _watching.clear()
    assert 0 < loaded < polled < len(_threads)
    assert threading.current_thread() not in _threads


async def test_one_manifest_with_half_a_character_does_not_hide_the_other_models(
    tmp_path: Path, registry: Registry
) -> None:
    field("schema", "\ud800")(lenet5(tmp_path))
    write_version(tmp_path / "tiny" / "1")
    await registry.load_all()
    control = ModelControl(registry, tmp_path, mode="explicit", allowed=True)
    reasons = [version.reason for model in await control.index() for version in describe(model, labels=True).versions]
    assert reasons == [r"manifest.json has schema \ud800, this server reads 1 and 2; export the model again", ""]
