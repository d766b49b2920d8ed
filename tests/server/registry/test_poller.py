"""Polling of the model repository: when the poller sees a change, and what the registry does with it."""

import contextlib
import ctypes
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cnnserve.errors import ModelLoadFailed, ModelNotFound, ModelNotReady
from cnnserve.images.decoding_pool import DecodingPool
from cnnserve.model.loader import OpenVersion
from cnnserve.registry.lifecycle import State, VersionLabels
from cnnserve.registry.opening import VersionOpener
from cnnserve.registry.poller import ModelSight, Poller, look
from cnnserve.registry.registry import Registry
from cnnserve.registry.version_labels import read_labels
from cnnserve.repository.folders import model_folder
from cnnserve.repository.version_files import VersionFiles
from support import open_files, tiny_onnx, until, write_version


class Disk:
    """A model repository that a test polls."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.seen: dict[str, ModelSight] = {}

    def poll(self) -> dict[str, list[int]]:
        """Polls and returns the versions that may be loaded, by model."""
        self.seen = look(self.root, self.seen)
        return {name: sorted(sight.loadable) for name, sight in self.seen.items()}


def plain_version(folder: Path) -> Path:
    """Writes a version without a manifest."""
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(tiny_onnx())
    return folder


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


def test_a_version_with_a_manifest_is_there_when_its_files_are_complete(disk: Disk) -> None:
    folder = write_version(disk.root / "m" / "1")
    assert disk.poll() == {"m": [1]}
    model = (folder / "model.onnx").read_bytes()
    for length in (0, 10, len(model) - 1):
        (folder / "model.onnx").write_bytes(model[:length])
        assert disk.poll() == {"m": []}
    (folder / "model.onnx").write_bytes(model)
    assert disk.poll() == {"m": [1]}
    (folder / "manifest.json").write_text('{"schema": ')
    assert disk.poll() == {"m": []}


@pytest.mark.parametrize("text", ["[" * 200_000, '{"schema": 1, "class_count": 1e999}'])
def test_a_strange_manifest_keeps_no_other_model_from_being_seen(disk: Disk, text: str) -> None:
    folder = write_version(disk.root / "broken" / "1")
    (folder / "manifest.json").write_text(text)
    write_version(disk.root / "good" / "1")
    assert disk.poll() == {"broken": [], "good": [1]}


def test_a_copy_that_stops_half_way_is_tried_so_that_it_says_why(disk: Disk) -> None:
    folder = write_version(disk.root / "m" / "1")
    (folder / "golden.png").unlink()
    assert [disk.poll()["m"] for _ in range(4)] == [[], [], [1], [1]]


@pytest.mark.parametrize("change", ["content", "time", "new file", "config"])
def test_a_version_without_a_manifest_is_there_after_two_polls_without_a_change(disk: Disk, change: str) -> None:
    folder = plain_version(disk.root / "m" / "1")
    assert [disk.poll()["m"] for _ in range(2)] == [[], []]
    match change:
        case "content":
            with (folder / "model.onnx").open("ab") as file:
                file.write(b"x")
        case "time":
            os.utime(folder / "model.onnx", ns=(1, 1))
        case "new file":
            (folder / "weights.bin").write_bytes(b"x")
        case "config":
            (folder.parent / "config.pbtxt").write_text("")
    assert [disk.poll()["m"] for _ in range(4)] == [[], [], [1], [1]]


def test_a_config_that_changes_beside_a_complete_version_settles_first(disk: Disk) -> None:
    write_version(disk.root / "m" / "1")
    assert disk.poll() == {"m": [1]}
    (disk.root / "m" / "config.pbtxt").write_text("")
    assert [disk.poll()["m"] for _ in range(3)] == [[], [], [1]]
    write_version(disk.root / "m" / "2")
    assert disk.poll() == {"m": [1, 2]}


def test_what_is_no_part_of_a_version_changes_nothing(disk: Disk) -> None:
    folder = plain_version(disk.root / "m" / "1")
    for _ in range(3):
        disk.poll()
    request = disk.seen["m"].request
    (folder / ".part").write_text("x")
    (folder / "cache").mkdir()
    (folder.parent / "version_labels.json").write_text("{}")
    assert disk.poll() == {"m": [1]}
    assert disk.seen["m"].request == request


def test_what_is_missing_once_is_not_gone(disk: Disk) -> None:
    plain_version(disk.root / "m" / "1")
    plain_version(disk.root / "m" / "2")
    for _ in range(3):
        disk.poll()
    request = disk.seen["m"].request
    for path in (disk.root / "m" / "2", disk.root / "m"):
        away = path.with_name(".away")
        path.rename(away)
        disk.poll()
        assert disk.seen["m"].request == request
        away.rename(path)
        assert disk.poll() == {"m": [1, 2]}
    shutil.rmtree(disk.root / "m" / "2")
    disk.poll()
    assert disk.poll() == {"m": [1]}
    shutil.rmtree(disk.root / "m")
    disk.poll()
    assert disk.seen["m"].missing
    assert disk.poll() == {}


def test_a_repository_that_cannot_be_read_is_an_error(disk: Disk) -> None:
    with pytest.raises(ModelLoadFailed, match="cannot be read"):
        look(disk.root / "gone", {})


class Polls:
    """A poller that polls when a test asks for it, and waits for everything that the poll starts."""

    def __init__(self, registry: Registry, root: Path) -> None:
        self.seconds = 0.0
        self._poller = Poller(registry, root, 1.0, clock=lambda: self.seconds)

    async def __call__(self, count: int = 1) -> None:
        for _ in range(count):
            await self._poller.poll()
            await self._poller.settle()


@pytest.fixture
def polls(registry: Registry, tmp_path: Path) -> Polls:
    return Polls(registry, tmp_path)


def states(registry: Registry, name: str = "m") -> dict[int, str]:
    return {number: entry.state.value for number, entry in registry.entry(name).versions.items()}


async def test_published_broken_repaired_removed(tmp_path: Path, registry: Registry, polls: Polls) -> None:
    write_version(tmp_path / "m" / "1")
    await registry.load_all()
    await polls()
    first = registry.get("m")
    second = write_version(tmp_path / "m" / "2")
    good = (second / "labels.txt").read_text()
    (second / "labels.txt").write_text(good.replace("bright", "blight"))
    await polls()
    assert states(registry) == {1: "READY", 2: "UNAVAILABLE"}
    assert "labels.txt was altered" in registry.entry("m").versions[2].reason
    assert registry.get("m") is first
    (second / "labels.txt").write_text(good)
    await polls()
    assert states(registry) == {2: "READY"}
    current = registry.get("m")
    (second / "model.onnx").write_bytes(b"")
    await polls(3)
    assert registry.get("m") is current
    assert "the reload failed: model.onnx is empty" in registry.entry("m").versions[2].reason
    shutil.rmtree(second)
    await polls()
    assert registry.get("m") is current
    await polls()
    assert states(registry) == {1: "READY"}
    shutil.rmtree(tmp_path / "m")
    await polls(2)
    with pytest.raises(ModelNotFound):
        registry.get("m")


async def test_a_half_copied_version_is_no_failure_while_it_grows(
    tmp_path: Path, registry: Registry, polls: Polls, caplog: pytest.LogCaptureFixture
) -> None:
    write_version(tmp_path / "m" / "1")
    await registry.load_all()
    folder = write_version(tmp_path / "m" / "2")
    model = (folder / "model.onnx").read_bytes()
    with caplog.at_level(logging.WARNING):
        for length in range(5):
            (folder / "model.onnx").write_bytes(model[:length])
            await polls()
            assert states(registry) == {1: "READY"}
        (folder / "model.onnx").write_bytes(model)
        await polls()
    assert states(registry) == {2: "READY"}
    assert not caplog.records


async def test_a_failed_version_is_told_once(
    tmp_path: Path, registry: Registry, polls: Polls, caplog: pytest.LogCaptureFixture
) -> None:
    folder = plain_version(tmp_path / "m" / "1")
    (folder / "model.onnx").write_text("no model")
    with caplog.at_level(logging.WARNING):
        await polls()
        with pytest.raises(ModelNotReady, match="version 1 is not complete yet"):
            registry.get("m")
        await polls(5)
    assert states(registry) == {1: "UNAVAILABLE"}
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR"]
    (folder / "model.onnx").write_bytes(tiny_onnx())
    await polls(3)
    assert states(registry) == {1: "READY"}


async def test_a_start_loads_at_once_and_polls_leave_it(tmp_path: Path, registry: Registry, polls: Polls) -> None:
    plain_version(tmp_path / "m" / "1")
    await registry.load_all()
    model = registry.get("m")
    for _ in range(4):
        await polls()
        assert registry.get("m") is model


async def test_the_policy_is_followed(tmp_path: Path, registry: Registry, polls: Polls) -> None:
    for number in (1, 2, 3):
        write_version(tmp_path / "m" / str(number))
    await registry.load_all()
    await polls()
    assert states(registry) == {3: "READY"}
    (tmp_path / "m" / "config.pbtxt").write_text("version_policy { all {} }")
    await polls(3)
    assert states(registry) == {1: "READY", 2: "READY", 3: "READY"}
    (tmp_path / "m" / "config.pbtxt").write_text("version_policy { specific { versions: 2 } }")
    await polls(3)
    assert states(registry) == {2: "READY"}


async def test_versions_that_a_label_names_are_served_beside_those_of_the_policy(
    tmp_path: Path, registry: Registry, polls: Polls
) -> None:
    for number in (1, 2, 3):
        write_version(tmp_path / "m" / str(number))
    labels = tmp_path / "m" / "version_labels.json"
    labels.write_text('{"stable": 1, "canary": 3, "gone": 9}')
    await registry.load_all()
    assert states(registry) == {1: "READY", 3: "READY"}
    assert registry.get("m").info.version == 3
    assert registry.get("m", "stable").info.version == 1
    await polls(2)
    stable = registry.get("m", "stable")
    await polls(2)
    assert registry.get("m", "stable") is stable
    labels.write_text('{"stable": 2}')
    await registry.refresh_labels()
    await polls()
    assert states(registry) == {2: "READY", 3: "READY"}
    labels.unlink()
    await registry.refresh_labels()
    await polls()
    assert states(registry) == {3: "READY"}


async def test_an_unreadable_repository_unloads_nothing(
    tmp_path: Path, registry: Registry, polls: Polls, caplog: pytest.LogCaptureFixture
) -> None:
    write_version(tmp_path / "m" / "1")
    await registry.load_all()
    await polls()
    away = tmp_path.with_name(f"{tmp_path.name}-away")
    shutil.move(tmp_path, away)
    await polls(4)
    assert states(registry) == {1: "READY"}
    assert len([record for record in caplog.records if "cannot be read" in record.message]) == 1
    shutil.move(away, tmp_path)
    write_version(tmp_path / "m" / "2")
    await polls()
    assert states(registry) == {2: "READY"}


async def test_a_model_that_drains_holds_up_no_other(tmp_path: Path, registry: Registry) -> None:
    folder = write_version(tmp_path / "m" / "1")
    await registry.load_all()
    poller = Poller(registry, tmp_path, 1.0)
    permit = registry.get("m")._batcher.reserve(1)
    shutil.rmtree(folder.parent)
    await poller.poll()
    await poller.poll()
    write_version(tmp_path / "other" / "1")
    await poller.poll()
    await until(lambda: any(model.name == "other" and model.ready for model in registry.models))
    assert registry.entry("m").versions[1].state is State.UNLOADING
    permit.release()
    await poller.settle()
    with pytest.raises(ModelNotFound):
        registry.entry("m")


async def test_a_model_that_the_registry_lost_is_asked_for_again(
    tmp_path: Path, registry: Registry, polls: Polls
) -> None:
    write_version(tmp_path / "m" / "1")
    await polls(3)
    await registry.remove("m")
    await polls()
    assert states(registry) == {1: "READY"}


class _Capabilities(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


@pytest.fixture
def ordinary_user() -> Iterator[None]:
    """Root may read every file. Without two capabilities of this thread, and those it starts, root may not."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    before = (_Capabilities * 2)()
    assert libc.capget(header, before) == 0
    without = (_Capabilities * 2).from_buffer_copy(before)
    without[0].effective &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(header, without) == 0
    yield
    assert libc.capset(header, before) == 0


@contextlib.contextmanager
def forbidden(path: Path) -> Iterator[None]:
    mode = path.stat().st_mode
    path.chmod(0)
    yield
    path.chmod(mode)


@pytest.mark.usefixtures("ordinary_user")
@pytest.mark.parametrize("what", ["m", "m/1", "."])
async def test_a_serving_version_outlasts_a_folder_that_cannot_be_read(
    tmp_path: Path, registry: Registry, polls: Polls, what: str
) -> None:
    write_version(tmp_path / "m" / "1")
    await registry.load_all()
    model = registry.get("m")
    with forbidden(tmp_path / what):
        for _ in range(5):
            polls.seconds += 100
            await polls()
        # Also if something asks for the model while its folder cannot be read.
        await registry.sync("m")
        assert registry.get("m") is model
        assert registry.entry("m").reason == ("its folder cannot be read: Permission denied" if what != "m/1" else "")
    polls.seconds += 1000
    await polls()
    assert registry.get("m") is model
    assert (registry.entry("m").reason, registry.entry("m").versions[1].reason) == ("", "")


@pytest.mark.usefixtures("ordinary_user")
@pytest.mark.parametrize("what", ["m", "m/1", "m/1/model.onnx", "m/1/manifest.json", "m/config.pbtxt"])
async def test_a_load_that_failed_for_a_passing_reason_is_tried_again_with_growing_pauses(
    tmp_path: Path, registry: Registry, polls: Polls, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    write_version(tmp_path / "m" / "1")
    (tmp_path / "m" / "config.pbtxt").write_text("max_batch_size: 4")
    with forbidden(tmp_path / what):
        await polls(3)
        assert not registry.entry("m").ready
        tries = []
        for second in range(40):
            polls.seconds = second
            before = len(caplog.records)
            await polls()
            if len(caplog.records) > before:
                tries.append(second)
    if what != "m":  # The model's own reason is logged once.
        assert tries[:5] == [1, 3, 7, 15, 31]
    polls.seconds = 1000
    await polls()
    assert states(registry) == {1: "READY"}


@pytest.mark.parametrize(
    ("file", "content"),
    [("1/labels.txt", b"dark\nleft\nblight\n"), ("config.pbtxt", "max_batch_size: 8\n".encode("utf-16"))],
)
async def test_a_load_that_failed_for_good_is_not_tried_again(
    tmp_path: Path, registry: Registry, polls: Polls, caplog: pytest.LogCaptureFixture, file: str, content: bytes
) -> None:
    write_version(tmp_path / "m" / "1")
    (tmp_path / "m" / file).write_bytes(content)
    await polls(3)
    told = len(caplog.records)
    for second in range(0, 4000, 100):
        polls.seconds = second
        await polls()
    assert len(caplog.records) == told


@pytest.mark.parametrize("error", [MemoryError(), OSError(5, "Input/output error"), RuntimeError("std::bad_alloc")])
async def test_too_little_memory_and_a_failing_disk_may_pass(tmp_path: Path, error: Exception) -> None:
    write_version(tmp_path / "m" / "1")
    failures = [error]

    def open_once(files: VersionFiles, **options: Any) -> OpenVersion:
        if failures:
            raise failures.pop()
        return open_files(files, **options)

    with DecodingPool(1) as decoders:
        registry = Registry(tmp_path, VersionOpener(open_once, decoders))
        polls = Polls(registry, tmp_path)
        await polls()
        assert states(registry) == {1: "UNAVAILABLE"}
        await polls()
        polls.seconds = 1.0
        await polls()
        assert states(registry) == {1: "READY"}
        await registry.close()


def test_pipes_delay_no_poll(disk: Disk) -> None:
    write_version(disk.root / "good" / "1")
    for name in ("version_labels.json", "config.pbtxt", "labels.txt"):
        path = disk.root / name.partition(".")[0].replace("_", "") / "1"
        path.mkdir(parents=True)
        os.mkfifo(path.parent / name)
        os.mkfifo(path / name)
    assert disk.poll()["good"] == [1]
    assert read_labels(model_folder(disk.root / "versionlabels"), VersionLabels()) == VersionLabels()
