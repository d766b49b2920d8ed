"""Requests that are known by their bytes get the same response as through the parser, whatever their bytes are."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from cnnserve.api.known_requests import KnownRequests
from cnnserve.api.methods import CallContext
from cnnserve.api.model_infer import Inference
from cnnserve.api.open_inference import InferenceService
from cnnserve.api.regions import SharedMemory
from cnnserve.errors import DeadlineExceeded, QueueFull, ServingError
from cnnserve.images.decoding_pool import DecodingPool
from cnnserve.process.admission import MemoryBudget
from cnnserve.registry.registry import Registry
from cnnserve.wire import open_inference_pb2 as pb
from support import SIDE, make_registry, tiny_onnx, until, write_version

PIXELS = SIDE * SIDE


class Bench:
    """A service whose model is `tiny`, asked through both ways."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.budget = MemoryBudget(2**20)
        self.inference = Inference(self.budget, SharedMemory(()), 2**20)
        self.known = KnownRequests(registry, self.inference)
        self.service = InferenceService(registry, self.inference, lambda: True)

    async def quick(self, data: bytes, deadline_ns: int | None = None) -> pb.ModelInferResponse | Exception | None:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        try:
            leave = self.known.answer(data, deadline_ns, lambda response, error: future.set_result(error or response))
        except ServingError as error:
            return error
        if leave is None:
            return None
        outcome = await future
        return outcome if isinstance(outcome, Exception) else pb.ModelInferResponse.FromString(outcome)

    async def slow(self, data: bytes) -> pb.ModelInferResponse | Exception:
        try:
            return await self.service.model_infer(pb.ModelInferRequest.FromString(data), CallContext())
        except Exception as error:
            return error

    async def teach(self, data: bytes) -> None:
        assert await self.quick(data) is None
        assert await self.quick(data) is None


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    write_version(tmp_path / "tiny" / "1")
    with DecodingPool(1) as decoders:
        registry = make_registry(tmp_path, decoders)
        await registry.load_all()
        yield Bench(registry)
        await registry.close()


def request(rows: int = 1, value: int = 255, *, version: str = "", outputs: bool = False, **more: Any) -> bytes:
    message = pb.ModelInferRequest(model_name="tiny", model_version=version, **more)
    message.inputs.add(name="image", datatype="UINT8", shape=[rows, SIDE, SIDE, 1])
    if outputs:
        message.outputs.add(name="probabilities")
    message.raw_input_contents.append(bytes([value]) * rows * PIXELS)
    return message.SerializeToString()


async def test_the_third_request_of_a_kind_is_known(bench: Bench) -> None:
    await bench.teach(request())
    response = await bench.quick(request(value=0))
    assert response == await bench.slow(request(value=0))
    assert len(bench.known) == 1


@pytest.mark.parametrize("more", [{"version": "1"}, {"outputs": True}, {"rows": 5}, {"id": "a"}])
async def test_versions_outputs_rows_and_ids_are_kinds_of_their_own(bench: Bench, more: dict[str, Any]) -> None:
    await bench.teach(request())
    await bench.teach(request(**more)) if "id" not in more else None
    for value in (0, 100, 255):
        data = request(value=value, **more)
        response = await bench.quick(data)
        assert isinstance(response, pb.ModelInferResponse)
        assert response == await bench.slow(data)


@pytest.mark.parametrize("identity", ["", "1", "x" * 127, "x" * 128, "☕", "a\0b"])
async def test_any_id_comes_back(bench: Bench, identity: str) -> None:
    await bench.teach(request())
    data = request(id=identity)
    response = await bench.quick(data)
    # Ids that are longer, or of other characters, go through the parser.
    assert (response is not None) == (len(identity) < 128 and identity.isascii())
    assert response is None or response == await bench.slow(data)


async def test_parameters_and_typed_contents_are_never_known(bench: Bench) -> None:
    with_parameter = pb.ModelInferRequest.FromString(request())
    with_parameter.parameters["priority"].int64_param = 1
    typed = pb.ModelInferRequest(model_name="tiny")
    typed.inputs.add(name="image", datatype="UINT8", shape=[1, SIDE, SIDE, 1]).contents.uint_contents.extend([1] * 64)
    for data in (with_parameter.SerializeToString(), typed.SerializeToString(), request(rows=99), b"", b"\x0a"):
        for _ in range(4):
            assert await bench.quick(data) is None
    assert len(bench.known) == 0


async def test_a_version_that_was_replaced_is_forgotten(bench: Bench, tmp_path: Path) -> None:
    await bench.teach(request())
    write_version(tmp_path / "tiny" / "2")
    await bench.registry.load("tiny")
    assert await bench.quick(request()) is None
    await bench.teach(request())
    response = await bench.quick(request())
    assert isinstance(response, pb.ModelInferResponse)
    assert response.model_version == "2"


async def test_a_model_that_was_unloaded_is_forgotten(bench: Bench) -> None:
    await bench.teach(request())
    await bench.registry.unload("tiny")
    assert await bench.quick(request()) is None
    assert len(bench.known) == 0


async def test_the_memory_budget_holds_and_is_given_back(bench: Bench) -> None:
    await bench.teach(request())
    bench.budget.take(2**20)
    assert isinstance(await bench.quick(request()), QueueFull)
    bench.budget.give(2**20)
    assert isinstance(await bench.quick(request()), pb.ModelInferResponse)
    assert bench.budget.held_bytes == 0


async def test_a_full_queue_refuses_and_holds_nothing(bench: Bench) -> None:
    await bench.teach(request())
    model = bench.registry.get("tiny")
    permits = [model._batcher.reserve(1) for _ in range(256)]
    assert isinstance(await bench.quick(request()), QueueFull)
    assert bench.budget.held_bytes == 0
    for permit in permits:
        permit.release()


async def test_a_deadline_that_passed_is_told_and_counted(bench: Bench) -> None:
    await bench.teach(request())
    statistics = bench.registry.get("tiny").statistics
    assert isinstance(await bench.quick(request(), deadline_ns=1), DeadlineExceeded)
    assert statistics.failures["REJECTED"] == 1
    assert bench.budget.held_bytes == 0


async def test_a_client_that_leaves_is_counted_once(bench: Bench) -> None:
    await bench.teach(request())
    answers: list[object] = []
    leave = bench.known.answer(request(), None, lambda *outcome: answers.append(outcome))
    assert leave is not None
    leave()
    leave()
    statistics = bench.registry.get("tiny").statistics
    await until(lambda: statistics.failures["CANCELED"] == 1)
    assert not answers
    assert bench.budget.held_bytes == 0


async def test_answered_requests_are_counted_as_the_others(bench: Bench) -> None:
    await bench.slow(request(rows=3))
    slow = bench.registry.get("tiny").statistics
    before = (slow.success.count, slow.inferences, slow.latencies.request.counts[:])
    await bench.teach(request(rows=3))
    await bench.quick(request(rows=3))
    assert (slow.success.count, slow.inferences) == (before[0] + 1, before[1] + 3)
    assert sum(slow.latencies.request.counts) == sum(before[2]) + 1


async def test_the_table_is_bounded(bench: Bench) -> None:
    for rows in range(1, 9):
        for width in range(80):
            data = request(rows=rows, id="", outputs=True, version="0" * width + "1")
            for _ in range(2):
                await bench.quick(data)
    assert len(bench.known) <= 256


async def test_a_float_tensor_at_an_odd_place_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "tiny" / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(tiny_onnx(datatype=TensorProto.FLOAT))
    with DecodingPool(1) as decoders:
        registry = make_registry(tmp_path, decoders)
        await registry.load_all()
        bench = Bench(registry)
        values = np.linspace(0, 255, PIXELS, dtype=np.float32)
        for length in range(1, 9):
            message = pb.ModelInferRequest(model_name="tiny", id="i" * length)
            message.inputs.add(name="image", datatype="FP32", shape=[1, SIDE, SIDE, 1])
            message.raw_input_contents.append(values.tobytes())
            data = message.SerializeToString()
            response = await bench.quick(data) or await bench.quick(data) or await bench.quick(data)
            assert response == await bench.slow(data)
        await registry.close()


def varint(number: int, padding: int = 0) -> bytes:
    """Not minimal if padded."""
    out = bytearray()
    while number >= 128 or padding > 0:
        if number < 128:
            padding -= 1
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def field(number: int, payload: bytes, padding: int = 0, lie: int = 0) -> bytes:
    return bytes([number << 3 | 2]) + varint(max(0, len(payload) + lie), padding) + payload


INPUT = pb.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=[1, SIDE, SIDE, 1])
FIELDS = st.one_of(
    st.builds(field, st.just(1), st.sampled_from([b"tiny", b"other", b""]), st.integers(0, 2), st.just(0)),
    st.builds(field, st.just(2), st.sampled_from([b"", b"1", b"2"]), st.integers(0, 2), st.just(0)),
    st.builds(field, st.just(3), st.binary(max_size=6), st.integers(0, 2), st.integers(-1, 1)),
    st.builds(field, st.just(5), st.just(INPUT.SerializeToString()), st.integers(0, 2), st.just(0)),
    st.builds(field, st.just(7), st.binary(min_size=PIXELS, max_size=PIXELS), st.integers(0, 2), st.integers(-1, 1)),
    st.binary(max_size=4),
)
VALID = [field(1, b"tiny"), field(3, b"id"), field(5, INPUT.SerializeToString()), field(7, bytes(PIXELS))]


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """A valid message with fields repeated, reordered, left out, appended, with lengths that lie and bytes flipped."""
    fields = list(VALID)
    for _ in range(draw(st.integers(0, 3))):
        fields.insert(draw(st.integers(0, len(fields))), draw(FIELDS))
    if draw(st.booleans()):
        fields = draw(st.permutations(fields))
    data = bytearray(b"".join(fields))
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, min(40, len(data) - 1)))
        data[at] ^= draw(st.integers(0, 255))
    return bytes(data)


@given(st.lists(messages(), min_size=1, max_size=6))
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
async def test_whatever_the_bytes_are_both_ways_say_the_same(bench: Bench, many: list[bytes]) -> None:
    for data in many:
        # Three times: the third is answered from the table, if the kind is known.
        for _ in range(3):
            quick = await bench.quick(data)
            if quick is None:
                continue
            slow = await bench.slow(data)
            if isinstance(quick, Exception):
                assert type(quick) is type(slow)
                assert str(quick) == str(slow)
            else:
                assert quick == slow
