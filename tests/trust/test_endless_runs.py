"""Runs and loads that never end: their version is taken out, their callers are told, and others go on."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from cnnserve.batching.batcher import DynamicBatcher
from cnnserve.batching.guard import Guard
from cnnserve.batching.instance import ModelInstance
from cnnserve.batching.policy import BatchPolicy
from cnnserve.errors import ModelLoadFailed, ModelNotReady, RunTimedOut
from cnnserve.images.decoding_pool import DecodingPool
from cnnserve.registry.lifecycle import State
from cnnserve.registry.opening import LoadLimits, VersionOpener
from cnnserve.registry.registry import Registry
from cnnserve.repository import folders
from cnnserve.wire import open_inference_pb2 as o
from doubtful_networks import looping_onnx, pixels
from fakes import FakeSession
from oip import Oip, tensor
from support import open_files, open_version, rewrite_manifest, serving, until, write_version

ENDLESS = 7
# The first pixel of the golden image.
GOLDEN = 255
SHORT = 'parameters { key: "cnnserve.run_timeout_s" value { string_value: "0.3" } }'


@pytest.fixture
def decoders() -> Iterator[DecodingPool]:
    with DecodingPool(1) as decoders:
        yield decoders


@pytest.fixture
async def registry(tmp_path: Path, decoders: DecodingPool) -> AsyncIterator[Registry]:
    """A registry that gives a load up after 2 s."""
    opener = VersionOpener(partial(open_files, load_timeout_s=2.0), decoders, limits=LoadLimits(2.0, 60.0))
    registry = Registry(tmp_path, opener)
    yield registry
    await asyncio.wait_for(registry.close(), 10)


def write_hanging(root: Path, name: str, config: str = SHORT) -> Path:
    """Writes a model that hangs on images with the first pixel `ENDLESS`."""
    folder = write_version(root / name / "1", looping_onnx(ENDLESS))
    (root / name / "config.pbtxt").write_text(config)
    return folder


def write_hanging_in_selftest(root: Path, name: str) -> None:
    folder = write_version(root / name / "1")
    (folder / "model.onnx").write_bytes(looping_onnx(GOLDEN))
    rewrite_manifest(folder)


def threads(name: str) -> list[str]:
    return [thread.name for thread in threading.enumerate() if name in thread.name]


async def test_a_version_that_hangs_is_taken_out_and_others_go_on(tmp_path: Path, registry: Registry) -> None:
    write_hanging(tmp_path, "hangs")
    write_version(tmp_path / "good" / "1")
    await registry.load_all()
    model = registry.get("hangs")
    hanging = asyncio.create_task(model.infer(pixels(ENDLESS)))
    await until(lambda: model.statistics is not None and "running=1" in repr(model))
    waiting = asyncio.create_task(model.infer(pixels(1)))
    assert (await registry.get("good").infer(pixels(1))).outputs[0].shape == (1, 3)
    with pytest.raises(RunTimedOut, match=r"took longer than 0\.3 s \(cnnserve\.run_timeout_s\)"):
        await asyncio.wait_for(hanging, 10)
    with pytest.raises(ModelNotReady, match="taken out of service: a run took longer"):
        await asyncio.wait_for(waiting, 10)
    with pytest.raises(ModelNotReady, match="hangs' version 1 is UNAVAILABLE: it was taken out of service: a run"):
        registry.get("hangs")
    with pytest.raises(ModelNotReady):
        await model.infer(pixels(1))
    assert registry.is_ready("good")
    # ONNX Runtime ends the run, and with it the thread.
    await until(lambda: not threads("hangs-1"))


async def test_a_version_that_was_taken_out_can_be_loaded_again(tmp_path: Path, registry: Registry) -> None:
    write_hanging(tmp_path, "hangs")
    await registry.load_all()
    with pytest.raises(RunTimedOut):
        await registry.get("hangs").infer(pixels(ENDLESS))
    await registry.sync("hangs")
    assert registry.entry("hangs").versions[1].state is State.UNAVAILABLE
    await registry.load("hangs")
    assert (await registry.get("hangs").infer(pixels(1))).outputs[0].shape == (1, 3)


async def test_the_time_limit_is_60_s_for_quick_models(tmp_path: Path) -> None:
    write_version(tmp_path / "m" / "1")
    assert open_version(folders.find(tmp_path, "m"), 1).run_limit_s == 60


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon", "100000"])
async def test_a_time_limit_that_is_none_fails_the_load(tmp_path: Path, registry: Registry, value: str) -> None:
    write_hanging(tmp_path, "m", SHORT.replace("0.3", value))
    with pytest.raises(ModelLoadFailed, match=rf'run_timeout_s is "{value}", expected a number of seconds from 0.001'):
        await registry.load("m")


async def test_self_tests_that_never_end_hold_no_slot(tmp_path: Path, registry: Registry) -> None:
    for name in ("a", "b"):
        write_hanging_in_selftest(tmp_path, name)
    write_version(tmp_path / "good" / "1")
    await asyncio.wait_for(registry.load_all(), 30)
    assert registry.is_ready("good")
    for name in ("a", "b"):
        entry = registry.entry(name).versions[1]
        assert entry.state is State.UNAVAILABLE
        assert "took longer than 2 s and was ended" in entry.reason or "--load-timeout-s" in entry.reason
    await until(lambda: not threads("load-") and not threads("a-1") and not threads("b-1"))


async def test_a_load_that_ends_after_its_limit_is_dropped(tmp_path: Path, decoders: DecodingPool) -> None:
    write_version(tmp_path / "m" / "1")
    gate = threading.Event()

    def held(*arguments: object, **options: object) -> object:
        # Without a limit: on a machine that pauses, the load could end before its limit is noticed.
        gate.wait()
        return open_files(*arguments, **options)  # type: ignore[arg-type]

    registry = Registry(tmp_path, VersionOpener(held, decoders, limits=LoadLimits(0.2, 60)))  # type: ignore[arg-type]
    try:
        with pytest.raises(ModelLoadFailed, match=r"did not end within 0\.2 s \(--load-timeout-s\)"):
            await registry.load("m")
    finally:
        gate.set()
    await until(lambda: not threads("load-m-1") and not threads("m-1"))
    assert registry.entry("m").versions[1].state is State.UNAVAILABLE
    await registry.close()


async def test_a_build_has_a_limit_of_its_own(tmp_path: Path, decoders: DecodingPool) -> None:
    write_version(tmp_path / "m" / "1")
    gate = threading.Event()

    def building(*arguments: object, **options: object) -> object:
        options["on_stage"]("building TensorRT engines")  # type: ignore[operator]
        gate.wait(30)
        return open_files(*arguments, **options)  # type: ignore[arg-type]

    limits = LoadLimits(0.1, 30)
    registry = Registry(tmp_path, VersionOpener(building, decoders, limits=limits))  # type: ignore[arg-type]
    load = asyncio.create_task(registry.load("m"))
    await until(lambda: "m" in {entry.name for entry in registry.models} and bool(registry.entry("m").versions))
    await until(lambda: registry.entry("m").versions[1].state is State.BUILDING)
    await asyncio.sleep(0.3)
    assert registry.entry("m").versions[1].state is State.BUILDING
    gate.set()
    await load
    assert registry.is_ready("m")
    await registry.close()


async def test_a_thread_that_does_not_return_does_not_hold_up_the_drain() -> None:
    session, reasons = FakeSession(held=True), list[str]()
    guard = Guard(run_limit_s=0.1, on_overdue=reasons.append)
    batcher = DynamicBatcher(BatchPolicy(max_batch_size=4), [ModelInstance(session, "stuck")], guard=guard)
    rows = np.ones((1, 1))
    tasks = [asyncio.create_task(batcher.submit(rows, batcher.reserve(1)))]
    await asyncio.to_thread(session.entered.acquire, timeout=10)
    tasks.append(asyncio.create_task(batcher.submit(rows, batcher.reserve(1))))
    closing = asyncio.create_task(batcher.close())
    outcomes = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
    await asyncio.wait_for(closing, 10)
    assert [type(outcome) for outcome in outcomes] == [RunTimedOut, ModelNotReady]
    assert reasons == ["a run took longer than 0.1 s (cnnserve.run_timeout_s) and was ended"]
    # The run ends after all: nobody is told twice.
    session.let()
    await until(lambda: not threads("stuck"))
    assert "queued=0 admitted=0 running=0" in repr(batcher)


async def test_runs_within_the_limit_are_left_alone() -> None:
    reasons: list[str] = []
    guard = Guard(run_limit_s=0.2, on_overdue=reasons.append)
    batcher = DynamicBatcher(BatchPolicy(max_batch_size=4), [ModelInstance(FakeSession(), "quick")], guard=guard)
    end = asyncio.get_running_loop().time() + 0.6
    while asyncio.get_running_loop().time() < end:
        await batcher.submit(np.ones((1, 1)), batcher.reserve(1))
        await asyncio.sleep(0.01)
    await batcher.close()
    assert not reasons


def test_a_server_with_a_run_that_never_ends_exits_in_time(tmp_path: Path) -> None:
    root = tmp_path / "models"
    write_hanging(root, "hangs", SHORT.replace("0.3", "1"))
    write_version(root / "tiny" / "1")
    with serving(tmp_path / "log", root) as server, Oip(server.address) as oip:
        code, text = oip.fails("ModelInfer", tensor(pixels(ENDLESS), model="hangs"))
        assert code.name == "INTERNAL"
        assert "a run took longer than 1 s" in text
        code, text = oip.fails("ModelInfer", tensor(pixels(1), model="hangs"))
        assert code.name == "UNAVAILABLE"
        assert "taken out of service" in text
        assert oip("ModelInfer", tensor(pixels(1))).model_name == "tiny"
        assert not oip("ModelReady", o.ModelReadyRequest(name="hangs")).ready
        assert server.terminate() == 0
        assert "version 1 was taken out of service" in server.log
