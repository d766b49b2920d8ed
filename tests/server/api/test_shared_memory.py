"""Tensors in shared memory: reading and writing them, and owners that change their regions meanwhile."""

import os
from collections.abc import Iterator
from multiprocessing import shared_memory
from pathlib import Path

import grpc
import numpy as np
import pytest

from cnnserve.api.regions import MAX_REGIONS, SharedMemory
from cnnserve.errors import AlreadyExists, InvalidInput, LimitReached, RegionNotFound, Unsupported
from cnnserve.wire import open_inference_pb2 as o
from oip import Oip, floats, rows, tensor, with_parameter
from support import CLASSES, RunningServer, as_other_user, picture, serving

PREFIX = f"cnnserve-test-{os.getpid()}"


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def memory(tmp_path: Path) -> SharedMemory:
    """Shared memory over a folder of files: on Linux, shared memory objects are files."""
    (tmp_path / "mine").write_bytes(bytes(range(100)))
    return SharedMemory(["mi"], tmp_path)


def test_a_region_is_a_window_of_its_object(memory: SharedMemory, tmp_path: Path) -> None:
    memory.register("r", "/mine", 10, 50)
    region = memory.get("r")
    assert region.read(0, 3) == bytes([10, 11, 12])
    assert region.read(49, 1) == bytes([59])
    region.write(48, b"xy")
    assert (tmp_path / "mine").read_bytes()[57:61] == b"9xy<"
    for offset, size in ((0, 51), (50, 1), (-1, 1), (1, -1), (2**63, 2**63)):
        with pytest.raises(InvalidInput, match="are outside it"):
            region.read(offset, size)
    with pytest.raises(InvalidInput, match="are outside it"):
        region.write(49, b"xy")


def test_a_truncated_object_is_reported_and_not_enlarged(memory: SharedMemory, tmp_path: Path) -> None:
    memory.register("r", "mine", 0, 100)
    os.truncate(tmp_path / "mine", 30)
    region = memory.get("r")
    assert len(region.read(0, 30)) == 30
    with pytest.raises(InvalidInput, match="was made smaller"):
        region.read(0, 31)
    with pytest.raises(InvalidInput, match="was made smaller"):
        region.write(20, bytes(11))
    assert (tmp_path / "mine").stat().st_size == 30


def test_a_region_in_use_stays_open(memory: SharedMemory) -> None:
    memory.register("r", "mine", 0, 100)
    region = memory.get("r")
    memory.unregister("r")
    assert region.read(5, 1) == b"\5"
    descriptors = open_files()
    del region
    assert open_files() == descriptors - 1


@pytest.mark.parametrize(
    ("key", "offset", "size", "said"),
    [
        ("other", 0, 1, "use a key that begins with mi"),
        ("/mi/../other", 0, 1, "use a key that begins with mi"),
        ("../mine", 0, 1, "use a key that begins with mi"),
        ("mi\0ne", 0, 1, "use a key that begins with mi"),
        ("missing", 0, 1, "cannot be opened: No such file"),
        ("mine", 0, 0, "byte_size is 0"),
        ("mine", 0, 101, "has 100 bytes, but offset 0 and byte_size 101"),
        ("mine", 2**64 - 1, 2**64 - 1, "has 100 bytes"),
        ("midir", 0, 1, "cannot be opened"),
        ("mipipe", 0, 1, "not a shared memory object"),
        ("milink", 0, 1, "cannot be opened"),
    ],
)
def test_what_is_not_registered(
    memory: SharedMemory, tmp_path: Path, key: str, offset: int, size: int, said: str
) -> None:
    (tmp_path / "midir").mkdir()
    os.mkfifo(tmp_path / "mipipe")
    (tmp_path / "milink").symlink_to("/etc/passwd")
    descriptors = open_files()
    with pytest.raises(InvalidInput, match=said):
        memory.register("r", key, offset, size)
    assert memory.all() == []
    assert open_files() == descriptors


def test_names_are_unique_and_regions_are_limited(memory: SharedMemory) -> None:
    memory.register("r", "mine", 0, 1)
    with pytest.raises(AlreadyExists):
        memory.register("r", "mine", 0, 1)
    for index in range(MAX_REGIONS - 1):
        memory.register(str(index), "mine", 0, 1)
    with pytest.raises(LimitReached):
        memory.register("more", "mine", 0, 1)
    memory.unregister("unknown")
    memory.unregister("")
    assert memory.all() == []
    with pytest.raises(RegionNotFound):
        memory.get("r")


def test_it_is_off_without_a_prefix() -> None:
    with pytest.raises(Unsupported, match="--shared-memory-prefix"):
        SharedMemory().register("r", "mine", 0, 1)


@pytest.fixture(scope="module")
def server(tiny_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    log = tmp_path_factory.mktemp("log") / "log"
    flags = ("--shared-memory-prefix", PREFIX, "--max-message-mib", "1")
    with serving(log, tiny_repository, *flags) as server:
        yield server
        assert "Traceback" not in server.log


@pytest.fixture
def owned(oip: Oip) -> Iterator[shared_memory.SharedMemory]:
    """A shared memory object of 4096 bytes of this process, registered as region `r`."""
    memory = shared_memory.SharedMemory(f"{PREFIX}-x", create=True, size=4096)
    try:
        oip("SystemSharedMemoryRegister", register())
        yield memory
    finally:
        oip("SystemSharedMemoryUnregister")
        memory.close()
        memory.unlink()


def register(name: str = "r", key: str = f"/{PREFIX}-x", size: int = 4096) -> o.SystemSharedMemoryRegisterRequest:
    return o.SystemSharedMemoryRegisterRequest(name=name, key=key, byte_size=size)


def place(message: object, offset: int, size: int, region: str = "r") -> None:
    with_parameter(message, "shared_memory_region", string_param=region)
    with_parameter(message, "shared_memory_offset", int64_param=offset)
    with_parameter(message, "shared_memory_byte_size", int64_param=size)


def shared(array: np.ndarray, offset: int = 0, region: str = "r") -> o.ModelInferRequest:
    request = tensor(array)
    del request.raw_input_contents[:]
    place(request.inputs[0], offset, array.nbytes, region)
    return request


def test_input_and_output_in_shared_memory(oip: Oip, owned: shared_memory.SharedMemory) -> None:
    array = rows(2)
    owned.buf[64 : 64 + array.nbytes] = array.tobytes()
    request = shared(array, 64)
    place(request.outputs.add(name="probabilities"), 1000, 100)
    answer = oip("ModelInfer", request)
    assert list(answer.raw_output_contents) == [b""]
    parameters = answer.outputs[0].parameters
    assert parameters["shared_memory_region"].string_param == "r"
    assert (parameters["shared_memory_offset"].int64_param, parameters["shared_memory_byte_size"].int64_param) == (
        1000,
        24,
    )
    there = np.frombuffer(owned.buf, np.float32, 2 * len(CLASSES), 1000).copy().reshape(2, -1)
    np.testing.assert_array_equal(there, floats(oip("ModelInfer", tensor(array))))


def test_images_in_shared_memory(oip: Oip, owned: shared_memory.SharedMemory) -> None:
    image = picture("bright")
    data = len(image).to_bytes(4, "little") + image
    owned.buf[: len(data)] = data
    request = o.ModelInferRequest(model_name="tiny")
    place(request.inputs.add(name="image", datatype="BYTES", shape=[1]), 0, len(data))
    assert floats(oip("ModelInfer", request)).argmax() == 2


def test_status_and_errors(oip: Oip, owned: shared_memory.SharedMemory) -> None:
    regions = oip("SystemSharedMemoryStatus").regions
    assert [(row.name, row.key, row.offset, row.byte_size) for row in regions.values()] == [
        ("r", f"/{owned.name}", 0, 4096)
    ]
    status = o.SystemSharedMemoryStatusRequest(name="s")
    assert oip.fails("SystemSharedMemoryStatus", status)[0] is grpc.StatusCode.NOT_FOUND
    assert oip.fails("SystemSharedMemoryRegister", register())[0] is grpc.StatusCode.ALREADY_EXISTS
    for request in (register("s", "/another"), register("s", size=4097)):
        assert oip.fails("SystemSharedMemoryRegister", request)[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert "system_shared_memory" in oip("ServerMetadata").extensions


def small_output() -> o.ModelInferRequest:
    request = tensor()
    place(request.outputs.add(name="probabilities"), 0, 11)
    return request


def both() -> o.ModelInferRequest:
    request = shared(rows())
    request.raw_input_contents.append(rows().tobytes())
    return request


def classified() -> o.ModelInferRequest:
    request = tensor()
    place(request.outputs.add(name="probabilities"), 0, 100)
    with_parameter(request.outputs[0], "classification", int64_param=1)
    return request


def huge() -> o.ModelInferRequest:
    request = o.ModelInferRequest(model_name="tiny")
    place(request.inputs.add(name="image", datatype="BYTES", shape=[1]), 0, 2**40)
    return request


@pytest.mark.parametrize(
    ("request_", "code", "said"),
    [
        (shared(rows(), region="s"), "NOT_FOUND", "region 's' is not registered"),
        (shared(rows(), 4090), "INVALID_ARGUMENT", "64 bytes from offset 4090 are outside it"),
        (shared(rows(8).repeat(9, 0)), "INVALID_ARGUMENT", "72 rows"),
        (huge(), "INVALID_ARGUMENT", "are outside it"),
        (both(), "INVALID_ARGUMENT", "in shared memory and in the message"),
        (small_output(), "INVALID_ARGUMENT", "the output has 12 bytes"),
        (classified(), "INVALID_ARGUMENT", "both classification and shared memory"),
    ],
)
def test_bad_requests(
    oip: Oip, owned: shared_memory.SharedMemory, request_: o.ModelInferRequest, code: str, said: str
) -> None:
    assert owned.size == 4096
    told = oip.fails("ModelInfer", request_)
    assert (told[0].name, said in told[1]) == (code, True), told


def test_a_size_that_is_not_the_tensors_is_refused(oip: Oip, owned: shared_memory.SharedMemory) -> None:
    request = shared(rows())
    request.inputs[0].parameters["shared_memory_byte_size"].int64_param = owned.size
    assert "expected 64 for its data type and shape" in oip.fails("ModelInfer", request)[1]


def test_an_owner_that_cuts_unlinks_and_leaves_harms_only_itself(
    server: RunningServer, oip: Oip, owned: shared_memory.SharedMemory
) -> None:
    os.truncate(f"/dev/shm/{owned.name}", 10)
    code, details = oip.fails("ModelInfer", shared(rows()))
    assert (code, "was made smaller" in details) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    assert floats(oip("ModelInfer", tensor())).argmax() == 1
    assert server.process.poll() is None


def test_a_region_of_another_user_says_whose_permission_is_missing(tmp_path: Path) -> None:
    (tmp_path / "mine").touch(mode=0o600 if os.geteuid() == 0 else 0)
    tmp_path.chmod(0o755)
    for folder in tmp_path.parents:
        if folder.owner() == Path.home().owner() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o001)
    with as_other_user(), pytest.raises(InvalidInput, match=r"Permission denied; let the server's user \d+ read and"):
        SharedMemory(["mi"], tmp_path).register("region", "mine", 0, 1)
