"""Loads, unloads, replacements and the end of the server, at the same time."""

import asyncio
import gc
import itertools
import shutil
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cnnserve.errors import ModelLoadFailed, ModelNotFound, ModelNotReady, ShuttingDown
from cnnserve.images.decoding_pool import DecodingPool
from cnnserve.model.loader import OpenVersion
from cnnserve.process import heap
from cnnserve.registry.lifecycle import State
from cnnserve.registry.opening import VersionOpener
from cnnserve.registry.registry import Registry
from cnnserve.repository import folders
from cnnserve.repository.folders import ModelFolder
from cnnserve.repository.version_files import VersionFiles
from cnnserve.runtime.session import Session
from support import HANG_S, make_registry, open_files, picture, tiny_onnx, until, write_version


@pytest.fixture
def decoders() -> Iterator[DecodingPool]:
    with DecodingPool(1) as decoders:
        yield decoders


@pytest.fixture
async def registry(tmp_path: Path, decoders: DecodingPool) -> AsyncIterator[Registry]:
    registry = make_registry(tmp_path, decoders)
    yield registry
    await asyncio.wait_for(registry.close(), HANG_S)


class HeldLoader:
    """The real loader behind a gate. It records its loads, and how many of them ran at once."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.gate = threading.Semaphore(0)
        self.calls: list[str] = []
        self.at_once: list[int] = []
        self.stages: list[str] = []
        self._inside = 0

    def __call__(self, files: VersionFiles, *, on_stage: Callable[[str], None]) -> OpenVersion:
        self.calls.append(f"{files.folder.name}/{files.version}")
        self._inside += 1
        self.at_once.append(self._inside)
        for stage in self.stages:
            on_stage(stage)
        self.entered.release()
        self.gate.acquire()
        self._inside -= 1
        return open_files(files)

    async def is_entered(self) -> None:
        await asyncio.to_thread(self.entered.acquire, timeout=HANG_S)


@pytest.fixture
def held() -> Iterator[HeldLoader]:
    held = HeldLoader()
    yield held
    held.gate.release(100)


@pytest.fixture
async def slow(tmp_path: Path, decoders: DecodingPool, held: HeldLoader) -> AsyncIterator[Registry]:
    """A registry whose loads wait until `held.gate` opens."""
    registry = Registry(tmp_path, VersionOpener(held, decoders))
    yield registry
    held.gate.release(100)
    await asyncio.wait_for(registry.close(), HANG_S)


async def version_of(registry: Registry, name: str = "m") -> int:
    model = registry.get(name)
    result = await model.classify([picture("bright")], 1)
    assert not isinstance(result.outcomes[0], Exception)
    return model.info.version


async def test_before_the_first_look_no_model_is_unknown(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the server returned NOT_FOUND while it starts, clients would not retry."""
    write_version(tmp_path / "m" / "1")
    scan, looked, gate = folders.scan, threading.Event(), threading.Event()

    def held(*arguments: Any) -> list[ModelFolder]:
        looked.set()
        gate.wait(HANG_S)
        return scan(*arguments)

    monkeypatch.setattr(folders, "scan", held)
    start = asyncio.create_task(registry.load_all())
    await asyncio.to_thread(looked.wait, HANG_S)
    for name in ("m", "nobody"):
        with pytest.raises(ModelNotReady, match="is starting"):
            registry.get(name)
        assert not registry.is_ready(name)
    gate.set()
    await start
    assert registry.is_ready("m")
    with pytest.raises(ModelNotFound):
        registry.get("nobody")


async def test_a_repository_that_cannot_be_read_has_no_models(tmp_path: Path, decoders: DecodingPool) -> None:
    registry = make_registry(tmp_path / "gone", decoders)
    with pytest.raises(ModelLoadFailed):
        await registry.load_all()
    with pytest.raises(ModelNotFound):
        registry.get("m")


async def test_a_load_that_builds_is_seen_building(tmp_path: Path, slow: Registry, held: HeldLoader) -> None:
    write_version(tmp_path / "m" / "1")
    held.stages = ["building TensorRT engines"]
    seen = []
    slow.on_change(lambda: seen.extend(v.state for m in slow.models for v in m.versions.values()))
    load = asyncio.create_task(slow.load("m"))
    await held.is_entered()
    await until(lambda: State.BUILDING in seen)
    with pytest.raises(ModelNotReady, match="version 1 is BUILDING: building TensorRT engines"):
        slow.get("m")
    held.gate.release()
    await load
    assert [state for state, _ in itertools.groupby(seen)] == [State.LOADING, State.BUILDING, State.READY]


async def test_one_model_loads_once_at_a_time_and_others_beside_it(
    tmp_path: Path, slow: Registry, held: HeldLoader
) -> None:
    for name in ("a", "b", "c"):
        write_version(tmp_path / name / "1")
    loads = [asyncio.create_task(slow.load(name)) for name in ("a", "a", "b", "c")]
    await held.is_entered()
    await held.is_entered()
    # The second load of `a` waits for the first one. The third model waits because two loads are running.
    await asyncio.sleep(0.05)
    assert len(held.calls) == len(set(held.calls)) == 2
    held.gate.release(3)
    await asyncio.gather(*loads)
    assert sorted(held.calls) == ["a/1", "b/1", "c/1"]
    assert max(held.at_once) == 2


async def test_a_cancelled_load_goes_on(tmp_path: Path, slow: Registry, held: HeldLoader) -> None:
    write_version(tmp_path / "m" / "1")
    load = asyncio.create_task(slow.load("m"))
    await held.is_entered()
    load.cancel()
    with pytest.raises(asyncio.CancelledError):
        await load
    assert slow.entry("m").versions[1].state is State.LOADING
    held.gate.release()
    # This load runs after the cancelled one.
    await slow.load("m")
    assert held.calls == ["m/1"]
    assert await version_of(slow) == 1


async def test_a_cancelled_load_that_fails_complains_of_nothing(
    tmp_path: Path, slow: Registry, held: HeldLoader
) -> None:
    folder = write_version(tmp_path / "m" / "1")
    (folder / "model.onnx").write_text("broken")
    load = asyncio.create_task(slow.load("m"))
    await held.is_entered()
    load.cancel()
    await asyncio.gather(load, return_exceptions=True)
    held.gate.release()
    # A warning "Task exception was never retrieved" would fail this test.
    await slow.unload("m")
    gc.collect()
    assert slow.entry("m").versions[1].state is State.UNAVAILABLE


async def test_an_unload_during_a_load_comes_after_it(tmp_path: Path, slow: Registry, held: HeldLoader) -> None:
    write_version(tmp_path / "m" / "1")
    load = asyncio.create_task(slow.load("m"))
    await held.is_entered()
    unload = asyncio.create_task(slow.unload("m"))
    await asyncio.sleep(0)
    held.gate.release()
    await asyncio.gather(load, unload)
    assert slow.entry("m").versions[1].reason == "unloaded"
    assert not slow.entry("m").ready


async def test_the_end_waits_for_no_load(tmp_path: Path, slow: Registry, held: HeldLoader) -> None:
    for name in ("a", "b", "c"):
        write_version(tmp_path / name / "1")
    loads = [asyncio.create_task(slow.load(name)) for name in ("a", "b", "c")]
    await held.is_entered()
    await asyncio.wait_for(slow.close(), HANG_S)
    for outcome in await asyncio.gather(*loads, return_exceptions=True):
        assert isinstance(outcome, ShuttingDown)
    with pytest.raises(ShuttingDown):
        await slow.load("a")
    held.gate.release(3)


async def test_a_drain_holds_up_no_other_model(tmp_path: Path, registry: Registry) -> None:
    for name in ("m", "other"):
        write_version(tmp_path / name / "1")
    await registry.load("m")
    model = registry.get("m")
    permit = model._batcher.reserve(1)
    unload = asyncio.create_task(registry.unload("m"))
    await asyncio.wait_for(registry.load("other"), HANG_S)
    assert registry.entry("m").versions[1].state is State.UNLOADING
    assert not unload.done()
    permit.release()
    await unload
    assert registry.entry("m").versions[1].state is State.UNAVAILABLE


async def test_no_request_fails_in_a_swap(tmp_path: Path, registry: Registry) -> None:
    """`get` and admission to the queue are one step of the event loop, so a swap comes before or after both."""
    folder = write_version(tmp_path / "m" / "1")
    await registry.load("m")
    stop = False
    answered = 0

    async def client() -> None:
        nonlocal answered
        while not stop:
            await version_of(registry)
            answered += 1

    clients = [asyncio.create_task(client()) for _ in range(32)]
    for number in range(2, 8):
        (folder / "golden.png").touch()
        await registry.load("m")
        write_version(tmp_path / "m" / str(number))
        await registry.load("m")
        shutil.rmtree(folder)
        folder = tmp_path / "m" / str(number)
        goal = answered + 32
        await until(lambda goal=goal: answered >= goal)
    stop = True
    await asyncio.gather(*clients)


async def test_unloading_what_is_not_loaded_is_no_error(tmp_path: Path, registry: Registry) -> None:
    write_version(tmp_path / "m" / "1")
    assert not (await registry.unload("m")).versions
    await registry.load("m")
    for _ in range(2):
        entry = await registry.unload("m")
        assert [version.reason for version in entry.versions.values()] == ["unloaded"]
    with pytest.raises(ModelNotFound):
        await registry.unload("nobody")
    with pytest.raises(ModelNotFound):
        registry.entry("nobody")


async def test_what_failed_is_tried_again_by_call_and_else_when_files_change(
    tmp_path: Path, slow: Registry, held: HeldLoader
) -> None:
    held.gate.release(100)
    folder = write_version(tmp_path / "m" / "1")
    good = (folder / "labels.txt").read_text()
    (folder / "labels.txt").write_text("x\n")
    for _ in range(3):
        await slow.sync("m")
    assert len(held.calls) == 1
    with pytest.raises(ModelLoadFailed):
        await slow.load("m")
    assert len(held.calls) == 2
    (folder / "labels.txt").write_text(good)
    await slow.sync("m")
    assert len(held.calls) == 3
    assert await version_of(slow) == 1
    # The same holds for a version that serves while its reload fails.
    (folder / "labels.txt").write_text("y\n")
    for _ in range(3):
        await slow.sync("m")
    assert len(held.calls) == 4
    assert await version_of(slow) == 1


async def test_versions_that_are_not_finished_are_not_there(tmp_path: Path, registry: Registry) -> None:
    write_version(tmp_path / "m" / "1")
    write_version(tmp_path / "m" / "2")
    await registry.sync("m", only=[])
    with pytest.raises(ModelNotReady, match="version 2 is not complete yet"):
        registry.get("m")
    await registry.sync("m", only=[1])
    assert await version_of(registry) == 1
    await registry.sync("m", only=[])
    assert await version_of(registry) == 1
    await registry.sync("m", only=[1, 2])
    assert await version_of(registry) == 2
    assert list(registry.entry("m").versions) == [2]


async def test_a_version_without_folder_goes_even_if_nothing_else_serves(tmp_path: Path, registry: Registry) -> None:
    folder = write_version(tmp_path / "m" / "1")
    await registry.load("m")
    shutil.rmtree(folder)
    await registry.sync("m")
    with pytest.raises(ModelNotReady, match="holds no version folder"):
        registry.get("m")


async def test_the_policy_is_read_at_every_load(tmp_path: Path, registry: Registry) -> None:
    for number in (1, 2, 3):
        write_version(tmp_path / "m" / str(number))
    config = tmp_path / "m" / "config.pbtxt"
    for text, expected in {
        "": [3],
        "version_policy { latest { num_versions: 2 } }": [2, 3],
        "version_policy { specific { versions: [1, 3, 7] } }": [1, 3],
        "version_policy { all {} }": [1, 2, 3],
        "version_policy { specific { versions: 2 } }": [2],
    }.items():
        config.write_text(text)
        await registry.load("m")
        assert [entry.version for entry in registry.entry("m").ready] == expected
    config.write_text("version_policy { specific { versions: 9 } }")
    with pytest.raises(ModelLoadFailed, match="names none of the versions 1, 2, 3"):
        await registry.load("m")
    assert await version_of(registry) == 2


async def test_a_manifest_can_be_required(tmp_path: Path, decoders: DecodingPool) -> None:
    registry = make_registry(tmp_path, decoders, require_manifest=True)
    folder = tmp_path / "m" / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(tiny_onnx())
    with pytest.raises(ModelLoadFailed, match=r"has no manifest\.json, which --require-manifest demands"):
        await registry.load("m")
    await registry.close()


async def test_labels_are_followed_without_a_load(tmp_path: Path, registry: Registry) -> None:
    for number in (1, 2):
        write_version(tmp_path / "m" / str(number))
    (tmp_path / "m" / "config.pbtxt").write_text("version_policy { all {} }")
    labels = tmp_path / "m" / "version_labels.json"
    labels.write_text('{"stable": 1}')
    await registry.load("m")
    first, second = registry.get("m", "1"), registry.get("m", "2")
    assert registry.get("m", "stable") is first
    labels.write_text('{"stable": 2, "old": 1}')
    await registry.refresh_labels()
    assert registry.get("m", "stable") is second
    assert registry.get("m", "old") is first
    # The files of labels do not belong to a version.
    await registry.load("m")
    assert registry.get("m", "2") is second
    await registry.unload("m")
    with pytest.raises(ModelNotReady, match="version 2 is UNAVAILABLE: unloaded"):
        registry.get("m", "stable")


class Sessions:
    """Weak references to all `Session`s that are made while a test runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._made: list[weakref.ref[Session]] = []
        original = Session.__init__

        def init(session: Session, *args: Any, **kwargs: Any) -> None:
            self._made.append(weakref.ref(session))
            original(session, *args, **kwargs)

        monkeypatch.setattr(Session, "__init__", init)

    async def were_made(self) -> None:
        """Waits for the first one."""
        await until(lambda: bool(self._made))

    async def are(self, alive: int) -> None:
        """Waits until `alive` sessions live, because threads need a moment to end."""
        await until(lambda: sum(ref() is not None for ref in self._made) == alive)


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sessions]:
    # Garbage collection is off: objects in a reference cycle would stay until it runs.
    gc.collect()
    gc.disable()
    yield Sessions(monkeypatch)
    gc.enable()


async def test_what_is_unloaded_or_replaced_is_freed(tmp_path: Path, registry: Registry, sessions: Sessions) -> None:
    folder = write_version(tmp_path / "m" / "1")
    await registry.load("m")
    assert await version_of(registry) == 1
    await sessions.are(1)
    for _ in range(3):
        (folder / "golden.png").touch()
        await registry.load("m")
        assert await version_of(registry) == 1
        await sessions.are(1)
    await registry.unload("m")
    await sessions.are(0)


@pytest.mark.parametrize("fault", ["self-test", "digest", "runtime", "labels"])
async def test_a_failed_load_leaves_nothing(tmp_path: Path, registry: Registry, sessions: Sessions, fault: str) -> None:
    folder = write_version(tmp_path / "m" / "1", tiny_onnx(softmax=fault != "self-test"))
    if fault == "digest":
        (folder / "labels.txt").write_text("dark\nleft\nblight\n")
    if fault != "digest":
        (folder / "manifest.json").unlink() if fault != "self-test" else None
    if fault == "runtime":
        (folder / "model.onnx").write_text("no model")
    if fault == "labels":
        # The manifest names a file that does not exist.
        (tmp_path / "m" / "config.pbtxt").write_text(
            'output { name: "probabilities" data_type: TYPE_FP32 dims: 3 label_filename: "labels.txt" }'
        )
    await sessions.are(0)
    threads = threading.active_count()
    for _ in range(3):
        with pytest.raises(ModelLoadFailed):
            await registry.load("m")
    await sessions.are(0)
    await until(lambda: threading.active_count() <= threads)


async def test_what_comes_after_the_end_is_freed(
    tmp_path: Path, slow: Registry, held: HeldLoader, sessions: Sessions
) -> None:
    write_version(tmp_path / "m" / "1")
    load = asyncio.create_task(slow.load("m"))
    await held.is_entered()
    await slow.close()
    with pytest.raises(ShuttingDown):
        await load
    held.gate.release()
    await sessions.were_made()
    await sessions.are(0)


async def test_every_change_gives_memory_back_to_the_system(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    trims = threading.Semaphore(0)
    trim = heap.trim
    monkeypatch.setattr(heap, "trim", lambda: (trim(), trims.release()))
    folder = write_version(tmp_path / "m" / "1")
    await registry.load("m")
    await registry.unload("m")
    (folder / "model.onnx").write_text("no model")
    with pytest.raises(ModelLoadFailed):
        await registry.load("m")
    for _ in range(3):
        await until(lambda: trims.acquire(blocking=False))


async def test_an_unforeseen_failure_is_told_as_a_fixed_text(tmp_path: Path, decoders: DecodingPool) -> None:
    def fail(files: VersionFiles, *, on_stage: Callable[[str], None]) -> OpenVersion:
        raise RuntimeError(f"secret {files.folder.path}")

    registry = Registry(tmp_path, VersionOpener(fail, decoders))
    write_version(tmp_path / "m" / "1")
    with pytest.raises(ModelLoadFailed, match="internal error while loading") as caught:
        await registry.load("m")
    assert "secret" not in str(caught.value)
    await registry.close()


def test_start_with_names(tmp_path: Path, decoders: DecodingPool) -> None:
    async def run() -> None:
        for name in ("a", "b"):
            write_version(tmp_path / name / "1")
        registry = make_registry(tmp_path, decoders)
        await registry.load_all(["b", "gone"])
        assert [(m.name, m.wanted, bool(m.ready)) for m in registry.models] == [
            ("a", False, False),
            ("b", True, True),
            ("gone", True, False),
        ]
        with pytest.raises(ModelNotReady, match="'a' has no version to serve: it is not loaded"):
            registry.get("a")
        with pytest.raises(ModelNotReady, match="'gone' has no version to serve: its folder is not in the model"):
            registry.get("gone")
        await registry.close()

    asyncio.run(run())
