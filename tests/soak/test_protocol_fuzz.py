"""ModelInfer with valid and malformed requests: a status with a reason, no crash, and no growth of memory.

The number of requests is 1,500, or 100,000 if CNNSERVE_SOAK_MINUTES is set.
"""

import os
import random
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from multiprocessing import shared_memory
from pathlib import Path

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cnnserve.datatypes import NUMPY_TYPES
from cnnserve.wire import open_inference_pb2 as o
from oip import SERVICE, Oip, encoded, floats, tensor, with_parameter
from support import HANG_S, RunningServer, half_free_onnx, picture, serving

SOAK = bool(float(os.environ.get("CNNSERVE_SOAK_MINUTES", "0")))
REQUESTS = 100_000 if SOAK else 1_500
# Each request that hypothesis makes is sent as it is, and this many times with changed bytes.
MUTANTS = 9
KEY = f"cnnserve-fuzz-{os.getpid()}"
GROWTH_KIB = 48 * 1024
Code = grpc.StatusCode
EXPECTED = {
    Code.OK,
    Code.INVALID_ARGUMENT,
    Code.NOT_FOUND,
    Code.UNAVAILABLE,
    Code.UNIMPLEMENTED,
    Code.RESOURCE_EXHAUSTED,
    Code.DEADLINE_EXCEEDED,
}

sizes = st.one_of(st.sampled_from([0, 1, 8, 9, -1, 2**31, 2**62, 2**63 - 1, -(2**63)]), st.integers(-3, 12))
shapes = st.one_of(st.sampled_from([[1, 8, 8, 1], [2, 8, 8, 1], [1], [2, 1]]), st.lists(sizes, max_size=10))
words = st.one_of(
    st.sampled_from(["", "tiny", "plain", "altered", "free", "image", "probabilities", "r", "1"]), st.text(max_size=9)
)
datatypes = st.one_of(st.sampled_from([*NUMPY_TYPES, "BYTES", "BF16", ""]), st.just("UINT8"))
blobs = st.one_of(
    st.binary(max_size=80),
    st.sampled_from([bytes(64), bytes(128), bytes(256), *encoded(picture("left")).raw_input_contents]),
    st.integers(0, 2**32 - 1).map(lambda size: size.to_bytes(4, "little") + b"x"),
)
values = st.one_of(
    st.booleans().map(lambda value: {"bool_param": value}),
    st.one_of(st.integers(0, 100), st.integers(-(2**63), 2**63 - 1)).map(lambda value: {"int64_param": value}),
    st.integers(0, 2**64 - 1).map(lambda value: {"uint64_param": value}),
    st.floats().map(lambda value: {"double_param": value}),
    words.map(lambda value: {"string_param": value}),
    st.just({}),
)
names = st.one_of(
    st.sampled_from(
        [
            "shared_memory_region",
            "shared_memory_offset",
            "shared_memory_byte_size",
            "classification",
            "priority",
            "timeout",
            "sequence_id",
            "triton_enable_empty_final_response",
            "triton_other",
        ]
    ),
    st.text(max_size=6),
)
parameters = st.dictionaries(names, values, max_size=4)
contents = st.fixed_dictionaries(
    {},
    optional={
        "uint_contents": st.lists(st.integers(0, 300), max_size=70),
        "fp32_contents": st.lists(st.floats(width=32), max_size=5),
        "bytes_contents": st.lists(blobs, max_size=3),
        "bool_contents": st.lists(st.booleans(), max_size=3),
    },
)


@st.composite
def requests(draw: st.DrawFn) -> o.ModelInferRequest:
    """Returns a request, each part of which is valid in half of the cases."""
    request = o.ModelInferRequest(
        model_name=draw(st.one_of(st.just("tiny"), words)),
        model_version=draw(st.one_of(st.just(""), words)),
        id=draw(words),
        raw_input_contents=draw(st.one_of(st.just([bytes(64)]), st.lists(blobs, max_size=3))),
    )
    add_parameters(request, draw(st.one_of(st.just({}), parameters)))
    for _ in range(draw(st.one_of(st.just(1), st.integers(0, 3)))):
        item = request.inputs.add(
            name=draw(st.one_of(st.just("image"), words)), datatype=draw(datatypes), shape=draw(shapes)
        )
        add_parameters(item, draw(st.one_of(st.just({}), parameters)))
        if draw(st.booleans()):
            item.contents.CopyFrom(o.InferTensorContents(**draw(contents)))
    for _ in range(draw(st.integers(0, 2))):
        add_parameters(request.outputs.add(name=draw(st.one_of(st.just("probabilities"), words))), draw(parameters))
    return request


def of_free(height: int) -> o.ModelInferRequest:
    """Returns a request for model `free`, which is valid only if the height is 8."""
    request = o.ModelInferRequest(model_name="free", raw_input_contents=[bytes(4 * 3 * height * 8)])
    request.inputs.add(name="image", datatype="FP32", shape=[1, 3, height, 8])
    return request


good_ones = st.sampled_from([tensor(), of_free(8), of_free(9), tensor(model="plain"), encoded(), encoded(shape=[1, 1])])


def add_parameters(message: object, chosen: dict[str, dict[str, object]]) -> None:
    for name, value in chosen.items():
        with_parameter(message, name, **value)


def mutants(data: bytes, generator: random.Random) -> Iterator[bytes]:
    """Yields the bytes as they are, then with flipped bits and with parts removed, doubled or replaced."""
    yield data
    for _ in range(MUTANTS):
        changed = bytearray(data)
        for _ in range(generator.randint(1, 4)):
            start = generator.randrange(len(changed) + 1)
            end = min(len(changed), start + generator.randint(1, 12))
            part = bytes(changed[start:end])
            kind = generator.randrange(4)
            changed[start:end] = [
                bytes(byte ^ 1 << generator.randrange(8) for byte in part),
                b"",
                part * 2,
                generator.randbytes(len(part)),
            ][kind]
        yield bytes(changed)


@pytest.fixture(scope="module")
def server(tiny_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with a region `r` of 256 bytes, and a model `free` that cannot run every size that it declares."""
    repository = tmp_path_factory.mktemp("fuzz") / "repository"
    shutil.copytree(tiny_repository, repository)
    (repository / "free" / "1").mkdir(parents=True)
    (repository / "free" / "1" / "model.onnx").write_bytes(half_free_onnx())
    region = shared_memory.SharedMemory(KEY, create=True, size=256)
    try:
        log = tmp_path_factory.mktemp("log") / "log"
        with serving(log, repository, "--shared-memory-prefix", KEY) as server, Oip(server.address) as oip:
            oip("SystemSharedMemoryRegister", o.SystemSharedMemoryRegisterRequest(name="r", key=KEY, byte_size=256))
            yield server
    finally:
        region.close()
        region.unlink()


def resident_kib(server: RunningServer) -> int:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    match = re.search(r"VmRSS:\s+(\d+)", status)
    assert match
    return int(match[1])


@pytest.mark.timeout(1800 if SOAK else 1200)
def test_no_request_is_too_strange_for_a_status(server: RunningServer) -> None:
    codes: Counter[Code] = Counter()
    memory: list[int] = []
    with Oip(server.address) as oip:
        send = oip.channel.unary_unary(f"/{SERVICE}/ModelInfer")
        good = tensor()

        @settings(
            max_examples=REQUESTS // (MUTANTS + 1),
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(st.one_of(good_ones, requests()), st.integers(0, 2**32))
        def fuzz(request: o.ModelInferRequest, seed: int) -> None:
            calls = [
                send.future(data, timeout=HANG_S) for data in mutants(request.SerializeToString(), random.Random(seed))
            ]
            told = Counter(call.code() for call in calls)
            assert set(told) <= EXPECTED, {call.code(): call.details() for call in calls}
            assert floats(oip("ModelInfer", good)).argmax() == 1
            codes.update(told)
            memory.append(resident_kib(server))

        fuzz()
    assert codes.total() >= REQUESTS
    # Some requests were valid by chance, most were not.
    assert 0 < codes[Code.OK] < codes.total() / 2
    assert server.process.poll() is None
    assert "Traceback" not in server.log
    assert "ERROR" not in server.log.partition("ready; models")[2]
    warm = len(memory) // 5
    growth = max(memory[-warm:]) - max(memory[: warm + 1])
    print(f"{codes.total()} requests: {dict(codes)}; memory {memory[0]} -> {memory[-1]} KiB, grown by {growth} KiB")
    assert growth < GROWTH_KIB
