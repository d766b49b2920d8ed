"""Kind: the bytes that were hashed are not the bytes that are loaded. What is hashed is what is loaded."""

import contextlib
import itertools
import os
import shutil
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest

from cnnserve.errors import ModelLoadFailed
from cnnserve.images.decoding_pool import DecodingPool
from cnnserve.model import loader
from cnnserve.registry.lifecycle import State
from cnnserve.registry.opening import VersionOpener
from cnnserve.registry.poller import Poller
from cnnserve.registry.registry import Registry
from cnnserve.repository import folders, private_copy
from cnnserve.repository.version_files import VersionFiles
from cnnserve.runtime import workers
from cnnserve.runtime.session import Session
from spoiling import refusal
from support import CLASSES, open_files, open_version, rewrite_manifest, tiny_onnx, wait_until, write_version

LOADS = 24


def marked(mark: str) -> bytes:
    """The tiny network, in a file that only its mark distinguishes from others."""
    model = onnx.load_from_string(tiny_onnx())
    model.producer_name = mark
    data: bytes = model.SerializeToString()
    return data


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The marks of the files of which sessions were made."""
    marks = []

    def session(*arguments: Any, **options: Any) -> Session:
        made = Session(*arguments, **options)
        marks.append(made._session.get_modelmeta().producer_name)
        return made

    monkeypatch.setattr(workers, "Session", session)
    return marks


@pytest.fixture
def version(tmp_path: Path) -> Path:
    return write_version(tmp_path / "m" / "1", marked("good"))


@pytest.fixture
def decoders() -> Iterator[DecodingPool]:
    with DecodingPool(1) as pool:
        yield pool


def in_place(path: Path, data: bytes) -> None:
    with path.open("r+b") as file:
        file.write(data)


def by_rename(path: Path, data: bytes) -> None:
    fresh = path.with_name(".fresh")
    fresh.write_bytes(data)
    fresh.replace(path)


@contextlib.contextmanager
def alternating(path: Path, contents: list[bytes], write: Callable[[Path, bytes], None]) -> Iterator[None]:
    stop = threading.Event()

    def alternate() -> None:
        for data in itertools.cycle(contents):
            write(path, data)
            if stop.wait(0.0005):
                return

    thread = threading.Thread(target=alternate)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("write", [in_place, by_rename])
def test_of_two_files_that_alternate_only_the_right_one_is_loaded(
    version: Path, loaded: list[str], write: Callable[[Path, bytes], None]
) -> None:
    refused = 0
    with alternating(version / "model.onnx", [marked("evil"), marked("good")], write):
        while len(loaded) + refused < LOADS:
            if said := refusal(version):
                assert "model.onnx was altered" in said or "was written while it was read" in said
                refused += 1
    assert {*loaded} <= {"good"}


@pytest.mark.parametrize("write", [in_place, by_rename])
@pytest.mark.parametrize("memfd", [True, False])
def test_a_file_that_changes_after_it_was_hashed_is_not_loaded(
    version: Path,
    loaded: list[str],
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[Path, bytes], None],
    memfd: bool,
) -> None:
    if not memfd:
        # As in a container that forbids the call.
        monkeypatch.setattr(private_copy, "_new_memory", lambda: None)
    opening = loader.open_sessions

    def change(*arguments: Any) -> Any:
        write(version / "model.onnx", marked("evil"))
        return opening(*arguments)

    monkeypatch.setattr(loader, "open_sessions", change)
    assert refusal(version) == ""
    assert loaded == ["good"]
    assert "model.onnx was altered" in refusal(version)


def test_nothing_is_read_of_a_file_that_is_too_large(version: Path) -> None:
    """It may be larger than the memory. This one has 1 TiB, none of it on the disk."""
    os.truncate(version / "model.onnx", 2**40)
    assert "file model.onnx has 1099511627776 bytes, the manifest says " in refusal(version)


@pytest.mark.parametrize("name", ["labels.txt", "golden.png", "golden.bin", "manifest.json"])
def test_neither_is_any_other_file(version: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    opening = loader.open_sessions

    def change(*arguments: Any) -> Any:
        (version / name).write_bytes(b"evil\nevil\nevil\n")
        return opening(*arguments)

    monkeypatch.setattr(loader, "open_sessions", change)
    opened = open_version(folders.find(version.parent.parent, "m"), 1)
    assert opened.info.labels == CLASSES
    assert opened.retest is not None
    # Also later, the golden images are those that were hashed.
    opened.retest()


KINDS: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a folder": Path.mkdir,
    "a device": lambda path: os.mknod(path, 0o20666, os.makedev(1, 3)),
}


@pytest.mark.parametrize("name", ["model.onnx", "labels.txt", "golden.png", "golden.bin", "manifest.json"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.timeout(60)
def test_what_is_no_file_is_refused(version: Path, name: str, kind: str) -> None:
    (version / name).unlink()
    try:
        KINDS[kind](version / name)
    except PermissionError:
        pytest.skip("making a device needs root")
    assert f"1/{name} is not a file but {kind}; put the file itself there" in refusal(version)


@pytest.mark.parametrize("name", ["model.onnx", "manifest.json"])
def test_a_socket_is_refused(version: Path, name: str) -> None:
    (version / name).unlink()
    with socket.socket(socket.AF_UNIX) as listening:
        # The path of a socket is short.
        with contextlib.chdir(version):
            listening.bind(name)
        assert f"1/{name} cannot be read" in refusal(version)


def outside(path: Path) -> Path:
    """Moves a file out of its model's folder, and returns its new path."""
    target = path.parent.parent.parent / "elsewhere" / path.name
    target.parent.mkdir(exist_ok=True)
    return path.rename(target)


LINKS: dict[str, Callable[[Path], object]] = {
    "absolute": lambda path: path.symlink_to(outside(path)),
    "relative": lambda path: path.symlink_to(f"../../elsewhere/{outside(path).name}"),
    "through another link": lambda path: (
        path.with_name(".other").symlink_to("../../elsewhere"),
        path.symlink_to(f".other/{outside(path).name}"),
    ),
    "out and in again": lambda path: (
        shutil.copyfile(path, path.with_name(".copy")),
        path.unlink(),
        path.symlink_to("../../m/1/.copy"),
    ),
}


@pytest.mark.parametrize("name", ["model.onnx", "labels.txt", "golden.png", "golden.bin", "manifest.json"])
@pytest.mark.parametrize("link", LINKS)
def test_a_link_out_of_the_models_folder_is_refused(version: Path, name: str, link: str) -> None:
    LINKS[link](version / name)
    assert f"1/{name} leads out of the model's folder; put the file itself there" in refusal(version)


@pytest.mark.parametrize("manifest", [True, False])
def test_so_is_a_version_elsewhere(version: Path, manifest: bool) -> None:
    if not manifest:
        (version / "manifest.json").unlink()
    version.symlink_to(version.rename(version.parent.parent / "elsewhere"))
    assert "leads out of the model's folder" in refusal(version)


def test_a_link_to_itself_is_refused(version: Path) -> None:
    (version / "model.onnx").unlink()
    (version / "model.onnx").symlink_to("model.onnx")
    assert "1/model.onnx leads through more than 40 links" in refusal(version)


def test_links_inside_the_models_folder_are_followed(version: Path, loaded: list[str]) -> None:
    shared = version.parent / "shared"
    shared.mkdir()
    for name in ("model.onnx", "labels.txt"):
        (version / name).rename(shared / name)
    (version / "model.onnx").symlink_to("../shared/model.onnx")
    (version / "labels.txt").symlink_to(shared / "labels.txt")
    version.rename(version.parent / ".one")
    version.symlink_to(".one")
    # The folder of the model may be a link to another place.
    (version.parent.parent / "other").mkdir()
    version.parent.rename(version.parent.parent / "other" / "m")
    version.parent.symlink_to("other/m")
    assert refusal(version) == ""
    assert loaded == ["good"]


def config_map(folder: Path, state: str, files: dict[str, bytes]) -> None:
    """Puts files into a folder as Kubernetes does for a ConfigMap: all change at once, by one rename of a link."""
    (folder / f"..{state}").mkdir(parents=True)
    for name, data in files.items():
        (folder / f"..{state}" / name).write_bytes(data)
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"..data/{name}")
    (folder / "..data_tmp").symlink_to(f"..{state}")
    before = (folder / "..data").readlink() if (folder / "..data").is_symlink() else None
    (folder / "..data_tmp").rename(folder / "..data")
    if before is not None:
        shutil.rmtree(folder / before)


def test_files_that_change_at_once_are_never_mixed(tmp_path: Path, loaded: list[str]) -> None:
    states = []
    for mark in ("one", "two"):
        folder = write_version(tmp_path / mark / "m" / "1", marked(mark))
        (folder / "labels.txt").write_text(f"{mark}\nleft\nbright\n")
        rewrite_manifest(folder)
        states.append({path.name: path.read_bytes() for path in folder.iterdir()})
    mounted = tmp_path / "m" / "1"
    numbers = itertools.count()
    config_map(mounted, "first", states[0])
    labels = []
    with alternating(mounted, states, lambda folder, files: config_map(folder, str(next(numbers)), files)):
        while len(labels) < LOADS:
            # The files of the state before are deleted, so a load may find none.
            with contextlib.suppress(ModelLoadFailed):
                labels.append(open_version(folders.find(tmp_path, "m"), 1).info.labels[0])
    assert labels == loaded[-LOADS:]


def test_a_config_map_may_hold_the_whole_model(tmp_path: Path, version: Path, loaded: list[str]) -> None:
    (version.parent / "config.pbtxt").write_text("max_batch_size: 3")
    mounted = tmp_path / "mounted"
    (mounted / "..first").mkdir(parents=True)
    for path in (version, version.parent / "config.pbtxt"):
        path.rename(mounted / "..first" / path.name)
        (mounted / path.name).symlink_to(f"..data/{path.name}")
    (mounted / "..data").symlink_to("..first")
    rewrite_manifest(mounted / "1", model="mounted")
    info = open_version(folders.find(tmp_path, "mounted"), 1).info
    assert info.settings.max_batch_size == 3
    assert loaded == ["good"]


def test_a_mount_that_cannot_be_written_is_enough(version: Path) -> None:
    with contextlib.ExitStack() as stack:
        for options in ("--bind", "-o remount,bind,ro"):
            command = ["mount", *options.split(), str(version.parent), str(version.parent)]
            if os.getuid() or subprocess.run(command, check=False, capture_output=True).returncode:
                pytest.skip("mounting needs root")
            if options == "--bind":
                stack.callback(subprocess.run, ["umount", str(version.parent)], check=True)
        with pytest.raises(OSError, match="Read-only"):
            (version / "new").touch()
        assert refusal(version) == ""


def test_a_load_leaves_no_copy_and_no_descriptor(version: Path) -> None:
    def descriptors() -> list[str]:
        found = []
        for path in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):  # other threads close theirs meanwhile
                found.append(str(path.readlink()))
        return found

    def left() -> list[str]:
        new = Counter(descriptors()) - before
        return [path for path in new if "memfd" in path or str(version.parent) in path]

    # Earlier tests of the process may have left some.
    before = Counter(descriptors())
    kept = [open_version(folders.find(version.parent.parent, "m"), 1)]
    kept.append(open_version(folders.find(version.parent.parent, "m"), 1))
    (version / "model.onnx").write_bytes(b"no model")
    assert "altered" in refusal(version) or "bytes" in refusal(version)
    (version / "manifest.json").unlink()
    assert "no ONNX file" in refusal(version)
    # A load that an earlier test has given up may end only now.
    wait_until(lambda: not left(), left)
    assert len(kept) == 2


async def test_files_that_change_and_change_back_are_loaded_again(tmp_path: Path, decoders: DecodingPool) -> None:
    """A poll sees the same files before and after. The load between them read others."""
    folder = tmp_path / "m" / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(tiny_onnx())
    calls = []

    def opened(files: VersionFiles, **options: Any) -> loader.OpenVersion:
        calls.append(files.fingerprint)
        if len(calls) > 1:
            return open_files(files, **options)
        (folder / "model.onnx").rename(folder / ".before")
        (folder / "model.onnx").write_bytes(marked("evil"))
        try:
            return open_files(files, **options)
        finally:
            (folder / ".before").replace(folder / "model.onnx")

    registry = Registry(tmp_path, VersionOpener(opened, decoders))
    await registry.load_all()
    poller = Poller(registry, tmp_path, 1.0, clock=itertools.count().__next__)
    for _ in range(5):
        await poller.poll()
        await poller.settle()
    assert len(calls) == 2
    entry = registry.entry("m").versions[1]
    assert entry.state is State.READY
    assert entry.fingerprint == folders.fingerprint(folders.find(tmp_path, "m"), 1)
    await registry.close()
