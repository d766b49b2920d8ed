"""Rows that are not finite or no probabilities do not leave the server, and fail nothing but their own request."""

import asyncio
import dataclasses
import json
import logging
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto

from cnnserve.api.known_requests import KnownRequests
from cnnserve.api.methods import CallContext
from cnnserve.api.model_infer import Inference
from cnnserve.api.regions import SharedMemory
from cnnserve.batching.batcher import BatchResult
from cnnserve.batching.row_check import SUSPECT_AFTER, RowCheck, RowKind, Streak
from cnnserve.errors import BadAnswer, InvalidInput, ModelLoadFailed, ModelNotReady
from cnnserve.images.decoding_pool import DecodingPool
from cnnserve.model.loader import OpenVersion
from cnnserve.model.retest import Retest
from cnnserve.model.version import Model
from cnnserve.process.admission import MemoryBudget
from cnnserve.registry.lifecycle import State
from cnnserve.registry.opening import VersionOpener
from cnnserve.registry.registry import Registry
from cnnserve.wire import open_inference_pb2 as o
from doubtful_networks import NOT_FINITE, TRIPLED, bad_rows_onnx, image, pixels
from oip import Oip, tensor
from support import free_onnx, make_registry, open_files, serving, tiny_onnx, until, write_version

SUM = r"output 'probabilities' has probabilities from .*, expected 0 to 1|sum to 3, expected 1"


@pytest.fixture
def decoders() -> Iterator[DecodingPool]:
    with DecodingPool(1) as decoders:
        yield decoders


@pytest.fixture
async def registry(tmp_path: Path, decoders: DecodingPool) -> AsyncIterator[Registry]:
    registry = make_registry(tmp_path, decoders)
    yield registry
    await asyncio.wait_for(registry.close(), 10)


@pytest.fixture(params=["inline", "instance"])
async def model(tmp_path: Path, registry: Registry, request: pytest.FixtureRequest) -> Model:
    """A model whose rows may be bad, run by the event loop and by the thread of its instance."""
    write_version(tmp_path / "tiny" / "1", bad_rows_onnx())
    if request.param == "instance":
        (tmp_path / "tiny" / "config.pbtxt").write_text("instance_group { count: 2 kind: KIND_CPU }")
    await registry.load("tiny")
    return registry.get("tiny")


async def test_an_image_fails_alone(model: Model) -> None:
    images = [image(value) for value in (1, TRIPLED, NOT_FINITE, 1)] + [b"no image"]
    outcomes = (await model.classify(images[:2] + images[4:] + images[2:4], top_k=1)).outcomes
    good, tripled, unread, infinite, last = outcomes
    assert [type(outcome) for outcome in outcomes] == [list, BadAnswer, InvalidInput, BadAnswer, list]
    assert good == last
    assert good[0].label == "left"
    assert "row 1 is not sent, because output 'probabilities' has probabilities that sum to 3, expected 1" in str(
        tripled
    )
    assert "row 2 is not sent, because output 'probabilities' has values that are not finite" in str(infinite)
    assert "image" in str(unread)
    assert model.statistics.bad_rows == 2


async def test_a_request_fails_and_names_its_row_and_others_of_its_batch_do_not(model: Model) -> None:
    values = [(1, 2), (1, TRIPLED), (3,), (NOT_FINITE,), (4, 5)]
    results = await asyncio.gather(*(model.infer(pixels(*row)) for row in values), return_exceptions=True)
    assert [type(result) for result in results] == [BatchResult, BadAnswer, BatchResult, BadAnswer, BatchResult]
    assert "the model's answer to row 1 of 2 is not sent" in str(results[1])
    assert "row 0 of 1" in str(results[3])
    for row, result in zip(values, results, strict=True):
        if isinstance(result, BatchResult):
            assert result.batch_size > len(row)
            assert len(result.outputs[0]) == len(row)
    assert model.statistics.bad_rows == 2
    assert model.statistics.failures["BACKEND"] == 2
    assert model.statistics.success.count == 3


async def test_a_request_with_images_fails_and_names_its_image(model: Model) -> None:
    with pytest.raises(BadAnswer, match="image 1 of 2 is not sent"):
        await model.infer_images([image(1), image(TRIPLED)])
    assert model.statistics.fail.count == 1


@pytest.mark.parametrize("value", [1, TRIPLED, NOT_FINITE])
async def test_known_requests_are_checked_as_others_are(model: Model, registry: Registry, value: int) -> None:
    budget = MemoryBudget(2**20)
    inference = Inference(budget, SharedMemory(()), 2**20)
    known = KnownRequests(registry, inference)
    data = tensor(pixels(value)).SerializeToString()
    told: list[Any] = []
    for _ in range(3):
        known.answer(data, None, lambda response, error: told.append(error or response))
    await until(lambda: len(told) == 1)
    slow = inference.run(o.ModelInferRequest.FromString(data), model, CallContext())
    (outcome,) = await asyncio.gather(slow, return_exceptions=True)
    if value == 1:
        assert o.ModelInferResponse.FromString(told[0]) == outcome
    else:
        assert (type(told[0]), str(told[0])) == (BadAnswer, str(outcome))
    assert budget.held_bytes == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
async def test_a_tensor_that_is_not_finite_is_refused_and_not_counted(
    tmp_path: Path, registry: Registry, value: float
) -> None:
    write_version(tmp_path / "m" / "1")
    (tmp_path / "floats" / "1").mkdir(parents=True)
    (tmp_path / "floats" / "1" / "model.onnx").write_bytes(tiny_onnx(datatype=TensorProto.FLOAT))
    await registry.load("floats")
    model = registry.get("floats")
    rows = pixels(1, 2).astype(np.float32)
    await model.infer(rows)
    rows[1, 3, 3, 0] = value
    with pytest.raises(InvalidInput, match="input 'image' has values that are NaN or infinite; send finite values"):
        await model.infer(rows)
    with pytest.raises(InvalidInput, match="NaN or infinite"):
        model.start_infer(rows, lambda _: None, None)
    assert model.statistics.fail.count == 0
    assert model.statistics.success.count == 1


async def test_logits_without_a_manifest_need_only_be_finite(tmp_path: Path, registry: Registry) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "1" / "model.onnx").write_bytes(free_onnx(4))
    await registry.load("m")
    model = registry.get("m")
    rows = np.full((1, 4, 4), -1e38, np.float32)
    assert (await model.infer(rows)).outputs[0].shape == (1, 16)


async def test_a_softmax_without_a_manifest_is_found_and_checked(tmp_path: Path, registry: Registry) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "1" / "model.onnx").write_bytes(bad_rows_onnx())
    await registry.load("m")
    model = registry.get("m")
    await model.infer(pixels(1))
    with pytest.raises(BadAnswer, match="sum to 3"):
        await model.infer(pixels(TRIPLED))


async def test_bad_rows_do_not_take_a_version_out_that_passes_its_self_test(model: Model, registry: Registry) -> None:
    batch = pixels(*[TRIPLED] * 8)
    for _ in range(2 * SUSPECT_AFTER // 8 + 1):
        with pytest.raises(BadAnswer):
            await model.infer(batch)
    # The repeated self-test runs beside the requests.
    while model.statistics.executions < 100:
        await model.infer(pixels(1))
    assert registry.get("tiny") is model


async def test_a_version_that_fails_its_repeated_self_test_is_taken_out(tmp_path: Path, decoders: DecodingPool) -> None:
    tested: list[str] = []

    def fail() -> None:
        tested.append("again")
        raise ModelLoadFailed("self-test: the memory of the weights has changed")

    def opened(*arguments: Any, **options: Any) -> OpenVersion:
        return dataclasses.replace(open_files(*arguments, **options), retest=fail)

    write_version(tmp_path / "m" / "1", bad_rows_onnx())
    registry = Registry(tmp_path, VersionOpener(opened, decoders))
    await registry.load("m")
    model = registry.get("m")
    for _ in range(SUSPECT_AFTER - 1):
        with pytest.raises(BadAnswer):
            await model.infer(pixels(TRIPLED))
    await model.infer(pixels(1))
    for _ in range(SUSPECT_AFTER):
        assert not tested
        with pytest.raises(BadAnswer):
            await model.infer(pixels(TRIPLED))
    await until(lambda: registry.entry("m").versions[1].state is State.UNAVAILABLE)
    with pytest.raises(
        ModelNotReady, match="it failed a self-test while it served: self-test: the memory of the weights has changed"
    ):
        registry.get("m")
    with pytest.raises(ModelNotReady):
        await model.infer(pixels(1))
    assert tested == ["again"]
    await asyncio.wait_for(registry.close(), 10)


@pytest.mark.parametrize("cause", [MemoryError(), RuntimeError("Failed to allocate memory for requested buffer")])
async def test_too_little_memory_for_a_self_test_takes_no_version_out(
    cause: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise ModelLoadFailed("self-test: the run failed") from cause

    taken_out: list[str] = []
    caplog.set_level(logging.INFO)
    retest = Retest("model m version 1", fail, taken_out.append)
    retest.rest()
    await until(lambda: not retest._running)
    assert "could not be repeated: self-test: the run failed" in caplog.text
    assert not taken_out
    assert "passed" not in caplog.text


def test_every_way_out_of_the_server(tmp_path: Path) -> None:
    write_version(tmp_path / "models" / "tiny" / "1", bad_rows_onnx())
    with serving(tmp_path / "log", tmp_path / "models") as server, Oip(server.address) as oip:
        code, text = oip.fails("ModelInfer", tensor(pixels(1, TRIPLED)))
        assert code.name == "INTERNAL"
        assert "row 1 of 2 is not sent, because output 'probabilities' has probabilities that sum to 3" in text
        http = f"http://127.0.0.1:{server.http_port}"
        with pytest.raises(urllib.error.HTTPError) as failed:
            urllib.request.urlopen(f"{http}/v1/models/tiny:classify", image(NOT_FINITE))
        assert failed.value.code == 500
        assert "output 'probabilities' has values that are not finite" in json.load(failed.value)["error"]
        failed.value.close()
        with urllib.request.urlopen(f"{http}/metrics") as response:
            metrics = response.read().decode()
        assert 'cnnserve_bad_rows_total{model="tiny",version="1"} 2.0' in metrics
        assert oip("ModelInfer", tensor(pixels(1))).model_name == "tiny"


ROWS = st.lists(
    st.lists(
        st.sampled_from([0.0, 0.25, 0.5, 1.0, 1.0005, -0.0005, 2.0, -1.0, 3e38, np.nan, np.inf, -np.inf]),
        min_size=3,
        max_size=3,
    ),
    min_size=1,
    max_size=5,
)


@given(ROWS, st.sampled_from(RowKind), st.sampled_from([np.float32, np.float64]), st.sampled_from([1, 50]))
def test_the_passes_over_a_batch_find_what_a_look_at_each_row_finds(
    rows: list[list[float]], kind: RowKind, dtype: type[np.floating[Any]], times: int
) -> None:
    # Python looks at few values, numpy at many.
    output = np.array(rows * times, dtype)

    def is_bad(row: list[float]) -> bool:
        values = np.array(row, dtype).astype(float)
        if not np.isfinite(values).all():
            return True
        if kind is not RowKind.ANY and (values.min() < -1e-3 or values.max() > 1 + 1e-3):
            return True
        return kind is RowKind.SOFTMAX and abs(values.sum() - 1) > 1e-3

    found = RowCheck(["scores"], 0, kind).bad_rows([output])
    assert sorted(found) == [index for index, row in enumerate(rows * times) if is_bad(row)]


def test_half_precision_and_many_classes_are_summed_exactly_enough() -> None:
    rows = np.full((3, 20_000), 1 / 20_000, np.float16)
    rows[1] *= np.float16(1.5)
    assert list(RowCheck(["p"], 0, RowKind.SOFTMAX).bad_rows([rows])) == [1]


def test_other_outputs_must_be_finite_and_integers_are_left_alone() -> None:
    good, odd = np.array([[0.5, 0.5]], np.float32), np.array([[7.0, np.nan]], np.float32)
    check = RowCheck(["p", "features", "index"], 0, RowKind.SOFTMAX)
    assert check.bad_rows([good, odd, np.array([[9]])]) == {0: "output 'features' has values that are not finite"}
    assert check.bad_rows([good, odd[:, :1], np.array([[9]])]) == {}


@pytest.mark.parametrize(
    ("runs", "calls"),
    [
        ([(8, range(8))] * 12, 0),
        ([(8, range(8))] * 13, 1),
        ([(100, range(100))] * 3, 3),
        ([(300, range(300))], 1),
        ([(99, range(99)), (1, []), (99, range(99))], 0),
        ([(60, range(10, 60)), (60, range(50)), (1, [0])], 1),
    ],
)
def test_the_streak_counts_bad_rows_without_a_good_one_between(
    runs: list[tuple[int, range | list[int]]], calls: int
) -> None:
    suspected: list[int] = []
    note: Callable[[], None] = lambda: suspected.append(1)  # noqa: E731
    streak = Streak(note)
    for size, bad in runs:
        streak.add(size, dict.fromkeys(bad, "bad"))
    assert len(suspected) == calls
