"""Golden images find changes of small probabilities and rows that depend on their batch, at the load or soon after."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cnnserve.datatypes import Rows
from cnnserve.errors import ModelLoadFailed
from cnnserve.images.decoding_pool import DecodingPool
from cnnserve.images.preprocessing import Preprocessor
from cnnserve.model import proving, selftest
from cnnserve.model.comparison import Tolerance, compare
from cnnserve.model.selftest import Extra
from cnnserve.model_config.providers import Provider
from cnnserve.registry.lifecycle import State
from cnnserve.registry.registry import Registry
from cnnserve.repository import manifest as manifests
from cnnserve.runtime.session import Session
from spoiling import rare_classes_exchanged
from support import make_registry, picture, png, rewrite_manifest, tiny_onnx, until, write_version

DARK = png(np.full((8, 8), 60, np.uint8))
SEVERAL = {"a.png": DARK, "b.png": picture("left"), "c.png": picture("bright")}


@pytest.fixture
def decoders() -> Iterator[DecodingPool]:
    with DecodingPool(1) as decoders:
        yield decoders


@pytest.fixture
async def registry(tmp_path: Path, decoders: DecodingPool) -> AsyncIterator[Registry]:
    registry = make_registry(tmp_path, decoders)
    yield registry
    await asyncio.wait_for(registry.close(), 10)


def with_batch_effect(effect: str) -> bytes:
    """Returns the tiny network, but its rows depend on the `size` of their batch (4 or more) or on its `brightest`."""
    model = onnx.load_from_string(tiny_onnx())
    graph = model.graph
    if effect == "size":
        added = [
            helper.make_node("Shape", ["rows"], ["count"], start=0, end=1),
            helper.make_node("GreaterOrEqual", ["count", "four"], ["is_large"]),
            helper.make_node("Cast", ["is_large"], ["large"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["large", "hundred"], ["more"]),
            helper.make_node("Add", ["rows", "more"], ["changed"]),
        ]
        graph.initializer.append(numpy_helper.from_array(np.array([4], np.int64), "four"))
    else:
        added = [
            helper.make_node("ReduceMax", ["rows"], ["most"], keepdims=0),
            helper.make_node("Div", ["rows", "most"], ["shares"]),
            helper.make_node("Mul", ["shares", "hundred"], ["changed"]),
        ]
    graph.initializer.append(numpy_helper.from_array(np.array(100, np.float32), "hundred"))
    nodes = [*graph.node[:2], *added, *graph.node[2:]]
    nodes[-2].input[0] = "changed"
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


@pytest.mark.parametrize("images", [{"golden.png": picture("left")}, SEVERAL], ids=["one image", "several images"])
@pytest.mark.parametrize("effect", ["size", "brightest"])
async def test_rows_that_depend_on_their_batch_are_refused(
    tmp_path: Path, registry: Registry, effect: str, images: dict[str, bytes]
) -> None:
    write_version(tmp_path / "m" / "1", with_batch_effect(effect), golden_images=images)
    with pytest.raises(ModelLoadFailed, match=r"in a batch of [38] gives class \d .* but alone it is"):
        await registry.load("m")


async def test_runs_that_do_not_fit_before_ready_follow_and_take_the_version_out(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_version(tmp_path / "m" / "1", with_batch_effect("size"))
    write_version(tmp_path / "good" / "1", golden_images=SEVERAL)
    no_time = partial(proving.examine, extra_s=0.0)
    rest = proving.examine
    monkeypatch.setattr(proving, "examine", lambda *a, **k: (rest if "extra_s" in k else no_time)(*a, **k))
    await asyncio.gather(registry.load("m"), registry.load("good"))
    info = registry.get("good").info
    assert info.self_test is not None
    assert not info.self_test.complete
    assert "the rest of the self-test follows" in str(info.self_test)
    await until(lambda: registry.entry("m").versions[1].state is State.UNAVAILABLE)
    assert "failed a self-test while it served: self-test: the golden image" in registry.entry("m").versions[1].reason
    assert registry.is_ready("good")


def test_runs_that_slow_down_do_not_outlast_their_time(tmp_path: Path) -> None:
    """The time is that which runs really take, so a machine that becomes busy does not delay a start."""
    images = {f"{number}.png": png(np.full((8, 8), number, np.uint8)) for number in range(32)}
    folder = write_version(tmp_path / "m" / "1", golden_images=images)
    manifest = manifests.read(folder)
    assert manifest is not None
    session = Session(folder / "model.onnx")
    sizes: list[int] = []

    def run(parts: Sequence[Rows]) -> list[Rows]:
        sizes.append(len(parts[0]))
        time.sleep(0.05 if len(sizes) > 2 else 0)
        return session.run(np.concatenate(parts))

    preprocessor = Preprocessor(manifest.preprocessing, manifest.input)
    test = selftest.run_golden(
        run,
        manifest,
        preprocessor,
        lambda name: (folder / name).read_bytes(),
        sizes=(1, 3),
        provider=Provider(),
        largest=8,
        extra=Extra(0.12),
    )
    assert not test.complete
    # One image, at most four more in 0.12 s, and the batch of three.
    assert sizes.count(1) <= 5
    assert sizes[-1] == 3


async def test_exchanged_classes_of_small_probability_are_found_by_their_logarithm(
    tmp_path: Path, registry: Registry
) -> None:
    folder = write_version(tmp_path / "m" / "1", golden_image=png(left(250)))
    await registry.load("m")
    rare_classes_exchanged(folder)
    rewrite_manifest(folder)
    with pytest.raises(ModelLoadFailed, match=r"tolerance of the logarithm 0.001"):
        await registry.load("m")


def left(value: int) -> Any:
    """Returns an image whose left half has this value. With 250, `dark` has 7e-5 and `bright` 5e-5."""
    pixels = np.zeros((8, 8), np.uint8)
    pixels[:, :4] = value
    return pixels


ONE = np.array([0.5, 0.5 - 1e-9, 1e-9])


@pytest.mark.parametrize(
    ("actual", "expected", "allowed", "differs"),
    [
        (ONE, ONE, Tolerance(1e-4, 1e-3), False),
        (ONE, np.array([0.5, 0.5 - 1e-9, 2e-9]), Tolerance(1e-4, 1e-3), True),
        (ONE, np.array([0.5, 0.5 - 1e-9, 2e-9]), Tolerance(1e-4), False),
        (ONE, np.array([0.5, 0.5 - 1e-9, 2e-9]), Tolerance(1e-4, 1e-3, floor=1e-6), False),
        (np.array([1.0, 0.0]), np.array([1.0, 1e-35]), Tolerance(1e-4, 1e-3), False),
        (np.array([1.0, 0.0]), np.array([1.0, 1e-29]), Tolerance(1e-4, 1e-3), True),
        (np.array([0.99, 0.2]), np.array([0.99005, 0.2]), Tolerance(1e-4, 1e-3, sigmoid=True), True),
        (np.array([0.99, 0.2]), np.array([0.99005, 0.2]), Tolerance(1e-4, 1e-3), False),
        # float32 holds values near 1 in steps of 6e-8.
        (np.array([1 - 6e-8, 0.2]), np.array([1.0, 0.2]), Tolerance(1e-4, 1e-3, sigmoid=True), False),
        (np.array([np.nan, 0.2]), np.array([1.0, 0.2]), Tolerance(1e-4, 1e-3), True),
    ],
)
def test_what_a_comparison_sees(actual: Any, expected: Any, allowed: Tolerance, differs: bool) -> None:
    if differs:
        with pytest.raises(ModelLoadFailed, match="the golden image g alone gives class"):
            compare(actual, expected, allowed, "g alone", "the manifest says")
    else:
        assert compare(actual, expected, allowed, "g alone", "the manifest says") < 1e-4
