"""A size of 0 in what a client sends, or in what a model's files say: told, never run, never divided by."""

import struct
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from onnx import TensorProto

from cnnserve.api import tensors
from cnnserve.errors import InvalidInput, ModelLoadFailed
from cnnserve.images.header import read_header
from cnnserve.images.preprocessing import ImageOptions, Preprocessor, RawImage
from cnnserve.model import loader
from cnnserve.model.version import Model
from cnnserve.model_config import pbtxt
from cnnserve.repository import folders
from cnnserve.repository.manifest import Preprocessing, Resize, TensorInfo
from cnnserve.transports.http import infer_json
from cnnserve.wire import open_inference_pb2 as o
from oip import Oip, encoded
from support import SIDE, free_onnx, half_free_onnx, open_version, picture, serving, tiny_onnx, write_version


def write(root: Path, model: bytes, config: str = "", name: str = "m") -> Path:
    (root / name / "1").mkdir(parents=True)
    (root / name / "1" / "model.onnx").write_bytes(model)
    (root / name / "config.pbtxt").write_text(config)
    return root


async def opened(root: Path) -> Model:
    return loader.start(open_version(folders.find(root, "m"), 1), None, print)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(1, 0, 8), (1, 8, 0), (2, 0, 0), (0, 8, 8), (0, 0, 0)])
async def test_a_model_of_free_sizes_takes_none_of_size_0(tmp_path: Path, shape: tuple[int, ...]) -> None:
    model = await opened(write(tmp_path, free_onnx()))
    with pytest.raises(InvalidInput):
        await model.infer(np.empty(shape, np.float32))
    assert model.statistics.executions == 0
    await model.close()


@pytest.mark.parametrize("shape", [(0, 8, 8), (8, 8), (), (1, 8, 8, 1)])
async def test_a_request_has_at_least_one_row_of_the_models_shape(tmp_path: Path, shape: tuple[int, ...]) -> None:
    model = await opened(write(tmp_path, free_onnx(SIDE)))
    with pytest.raises(InvalidInput):
        await model.infer(np.empty(shape, np.float32))
    assert model.statistics.executions == 0
    await model.close()


async def test_without_a_batch_dimension_a_reshaped_input_is_not_empty(tmp_path: Path) -> None:
    config = f"""max_batch_size: 0
    input {{ name: "image" data_type: TYPE_UINT8 dims: [{SIDE}, {SIDE}] reshape {{ shape: [1, {SIDE}, {SIDE}, 1] }} }}
    """
    model = await opened(write(tmp_path, tiny_onnx(), config))
    assert (await model.infer(np.zeros((SIDE, SIDE), np.uint8))).batch_size == 1
    for shape in ((0, SIDE), (SIDE, 0), (0, 0)):
        with pytest.raises(InvalidInput):
            await model.infer(np.empty(shape, np.uint8))
    await model.close()


@pytest.mark.parametrize(("height", "width"), [(0, 4), (4, 0), (0, 0)])
def test_raw_pixels_of_size_0(height: int, width: int) -> None:
    spec = Preprocessing("L", Resize("exact", (8, 8)), None, (0.0,), (1.0,), "graph")
    for fast in (False, True):
        preprocessor = Preprocessor(spec, TensorInfo("image", "UINT8", (8, 8, 1), "NHWC"), ImageOptions(fast))
        with pytest.raises(InvalidInput):
            preprocessor.raw(RawImage(b"", height, width, 1))


def gif(width: int, height: int) -> bytes:
    screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0, 0, 0)
    return screen + b"\x2c" + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x00\x3b"


def bmp(width: int, height: int) -> bytes:
    return b"BM" + bytes(12) + struct.pack("<IiiHHI", 40, width, height, 1, 24, 0) + bytes(24)


def png_header(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", width, height, 8, 0, 0, 0, 0) + bytes(4)


def jpeg(width: int, height: int) -> bytes:
    frame = struct.pack(">BHHB", 8, height, width, 1) + b"\x01\x11\x00"
    scan = b"\x01\x01\x00\x00\x3f\x00"
    return b"\xff\xd8\xff\xc0" + struct.pack(">H", 2 + len(frame)) + frame + b"\xff\xda\x00\x08" + scan


@pytest.mark.parametrize("make", [gif, bmp, png_header, jpeg])
def test_image_files_of_size_0(make: Any) -> None:
    assert (read_header(make(3, 2)).width, read_header(make(3, 2)).height) == (3, 2)
    for width, height in ((0, 2), (3, 0), (0, 0)):
        with pytest.raises(InvalidInput, match=f"{width}x{height}"):
            read_header(make(width, height))


STATED = """parameters {{ key: "cnnserve.image" value {{ string_value:
  '{{"color": "{}", "resize": {{"mode": "exact", "size": {}}}, "mean": {}, "std": {}, "normalize": "{}"}}' }} }}
"""


def test_a_stated_image_is_not_resized_to_nothing(tmp_path: Path) -> None:
    stated = STATED.format("L", [8, 0], [0], [1], "graph")
    with pytest.raises(ModelLoadFailed, match="resize"):
        open_version(folders.find(write(tmp_path, tiny_onnx(), stated), "m"), 1)


def test_a_stated_image_needs_an_input_of_fixed_sizes(tmp_path: Path) -> None:
    stated = STATED.format("RGB", [8, 8], [0, 0, 0], [1, 1, 1], "none")
    with pytest.raises(ModelLoadFailed, match=r"\[3, -1, -1\]"):
        open_version(folders.find(write(tmp_path, half_free_onnx(), stated), "m"), 1)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("dynamic_batching { preferred_batch_size: 0 }", "preferred_batch_size is 0"),
        ("dynamic_batching { preferred_batch_size: -1 }", "preferred_batch_size is -1"),
        ("max_batch_size: -1", "max_batch_size is -1"),
        ('parameters { key: "cnnserve.batch_buckets" value { string_value: "0,4" } }', "batch_buckets"),
        ('parameters { key: "cnnserve.max_pixels" value { string_value: "0" } }', "max_pixels"),
        ("instance_group { count: -1 }", "count is -1"),
    ],
)
def test_a_config_states_positive_sizes(tmp_path: Path, config: str, said: str) -> None:
    write_version(tmp_path / "m" / "1")
    (tmp_path / "m" / "config.pbtxt").write_text(config)
    with pytest.raises(ModelLoadFailed, match=said):
        open_version(folders.find(tmp_path, "m"), 1)


def test_a_warmup_of_free_sizes_has_none_of_size_0(tmp_path: Path) -> None:
    sample = "data_type: TYPE_FP32 dims: [8, 0] zero_data: true"
    config = f'model_warmup {{ name: "w" inputs {{ key: "image" value {{ {sample} }} }} }}'
    with pytest.raises(ModelLoadFailed, match=r"warmup .*\[8, 0\]"):
        open_version(folders.find(write(tmp_path, free_onnx(), config), "m"), 1)


def test_a_warmup_file_lies_in_the_models_warmup_folder(tmp_path: Path) -> None:
    sample = 'data_type: TYPE_FP32 dims: [8, 8] input_data_file: "../../rows.bin"'
    config = f'model_warmup {{ name: "w" inputs {{ key: "image" value {{ {sample} }} }} }}'
    (tmp_path / "rows.bin").write_bytes(np.zeros((8, 8), np.float32).tobytes())
    write(tmp_path, free_onnx(SIDE), config)
    (tmp_path / "m" / "warmup").mkdir()
    with pytest.raises(ModelLoadFailed, match=r"input_data_file '../../rows\.bin'"):
        open_version(folders.find(tmp_path, "m"), 1)


def test_a_body_cannot_tell_the_rows_of_an_input_that_has_no_bytes() -> None:
    metadata = o.ModelMetadataResponse(name="m")
    metadata.inputs.add(name="x", datatype="FP32", shape=[-1, 0])
    for body in (b"", bytes(4)):
        with pytest.raises(InvalidInput):
            infer_json.raw_request(body, metadata, "m", "")


def test_a_policy_of_no_versions_serves_the_newest() -> None:
    assert pbtxt.version_policy(pbtxt.parse("version_policy { latest { num_versions: 0 } }", "m")).choose([1, 2]) == [2]


@pytest.mark.parametrize("size", [-1, 2**31])
def test_a_size_that_no_tensor_has(size: int) -> None:
    tensor = o.ModelInferRequest.InferInputTensor(name="x", datatype="UINT8", shape=[1, size])
    with pytest.raises(InvalidInput, match=str(size)):
        tensors.check_shape(tensor)


def test_the_largest_and_the_smallest_size_that_a_tensor_may_have() -> None:
    tensor = o.ModelInferRequest.InferInputTensor(name="x", datatype="UINT8", shape=[2**31 - 1, 0])
    assert tensors.check_shape(tensor) == (2**31 - 1, 0)


def test_a_server_answers_empty_requests_with_an_error(tmp_path: Path) -> None:
    write_version(tmp_path / "r" / "tiny" / "1")
    write(tmp_path / "r", free_onnx(), name="free")
    write(tmp_path / "r", tiny_onnx(datatype=TensorProto.FLOAT), name="floats")
    with serving(tmp_path / "log", tmp_path / "r") as server, Oip(server.address) as oip:
        empty = o.ModelInferRequest(model_name="free", raw_input_contents=[b""])
        empty.inputs.add(name="image", datatype="FP32", shape=[1, 0, 8])
        images = encoded(picture("left"), shape=[0])
        images.raw_input_contents[0] = b""
        for request in (empty, images):
            assert oip.fails("ModelInfer", request)[0].name == "INVALID_ARGUMENT"
        url = f"http://127.0.0.1:{server.http_port}"
        for model, body in (("free", b""), ("floats", b""), ("tiny", b"")):
            # Nothing but the tensor's bytes: the shape follows from them.
            headers = {"Inference-Header-Content-Length": "0"}
            assert httpx.post(f"{url}/v2/models/{model}/infer", content=body, headers=headers).status_code == 400
        nested = {"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 0, 8], "data": []}]}
        assert httpx.post(f"{url}/v2/models/free/infer", json=nested).status_code == 400
        assert httpx.post(f"{url}/v1/models/tiny:classify", content=b"").status_code == 400
        assert "Traceback" not in server.log
        assert "ERROR" not in server.log
