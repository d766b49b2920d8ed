"""REST v2 of a real server: routes, tensors as JSON and as binary data, and refused requests."""

import gzip
import json
import struct
import zlib
from collections.abc import Iterator
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from support import CLASSES, HANG_S, SIDE, RunningServer, picture, serving, write_version

INFER = "/v2/models/tiny/infer"
ZEROS = [0] * (SIDE * SIDE)


@pytest.fixture(scope="module")
def http(tiny_server: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{tiny_server.http_port}", timeout=HANG_S) as client:
        yield client


def body(data: Any = None, **changes: Any) -> dict[str, Any]:
    """Returns an infer request for one black image; `changes` replace fields of its input."""
    tensor = {
        "name": "image",
        "datatype": "UINT8",
        "shape": [1, SIDE, SIDE, 1],
        "data": ZEROS if data is None else data,
    }
    return {"inputs": [{key: value for key, value in (tensor | changes).items() if value is not None}]}


def with_binary(header: dict[str, Any], *tensors: bytes) -> dict[str, Any]:
    """Returns httpx's arguments for a JSON header followed by binary data."""
    text = json.dumps(header).encode()
    return {"content": b"".join([text, *tensors]), "headers": {"Inference-Header-Content-Length": str(len(text))}}


@pytest.mark.parametrize(
    ("method", "path", "code", "said"),
    [
        ("GET", "/nothing", 404, "path '/nothing' does not exist"),
        ("GET", "/v2/", 404, "path '/v2/' does not exist"),
        ("POST", "/v2", 405, "method POST is not supported on this path"),
        ("GET", INFER, 405, "method GET is not supported on this path"),
        ("GET", "/v2/models/a%20b%2Fc", 404, ""),
        ("GET", "/v2/models/n%C3%B6", 404, "model 'nö' is not in the model repository"),
        ("POST", "/v2/models/nobody/infer", 404, "model 'nobody'"),
        ("POST", "/v2/repository/models/tiny/load", 403, "--allow-model-control"),
        ("POST", "/v2/repository/other/index", 501, "this server has one model repository"),
        ("GET", "/v2/models/tiny/config", 200, '"max_batch_size":8'),
        ("GET", "/v2/models/tiny/versions/1/config", 200, '"dims":[8,8,1]'),
        ("GET", "/v2/models/altered/config", 503, "labels.txt"),
        ("GET", "/v2/models/tiny/stats", 200, '"inference_count":'),
        ("GET", "/v2/models/stats", 200, '"name":"plain"'),
        ("GET", "/v2/models/nobody/stats", 404, "model 'nobody'"),
        ("GET", "/v2/logging", 200, '"log_info":true'),
        ("POST", "/v2/logging", 200, '"log_info":true'),
        ("GET", "/v2/trace/setting", 200, '"trace_level":["OFF"]'),
        ("GET", "/v2/models/nobody/trace/setting", 404, "model 'nobody'"),
        ("POST", "/v2/systemsharedmemory/region/a/unregister", 501, "shared"),
        ("GET", "/v2/cudasharedmemory/status", 501, "CUDA shared memory is not supported"),
        ("GET", "/v2/cudasharedmemory/region/a/status", 501, "CUDA shared memory is not supported"),
        ("POST", "/v2/cudasharedmemory/region/a/register", 501, "CUDA shared memory is not supported"),
        ("POST", "/v2/cudasharedmemory/region/a/unregister", 501, "CUDA shared memory is not supported"),
        ("POST", "/v2/cudasharedmemory/unregister", 501, "CUDA shared memory is not supported"),
        ("GET", "/openapi.json", 200, '"openapi":"3.1.0"'),
    ],
)
def test_routes(http: httpx.Client, method: str, path: str, code: int, said: str) -> None:
    response = http.request(method, path)
    assert response.status_code == code
    assert response.headers["content-type"] == "application/json"
    assert said in response.text
    if code != 200:
        assert set(response.json()) == {"error"}


def test_head_and_options(http: httpx.Client) -> None:
    head = http.head("/v2/health/ready")
    assert (head.status_code, head.content) == (200, b"")
    options = http.options(INFER)
    assert (options.status_code, options.headers["allow"]) == (204, "POST, OPTIONS")
    assert http.options("/v2").headers["allow"] == "GET, HEAD, OPTIONS"
    assert http.post("/v2").headers["allow"]


@pytest.mark.parametrize(
    ("path", "settings", "code", "said"),
    [
        ("/v2/logging", {"log_info": False}, 501, "log_info cannot be changed"),
        ("/v2/logging", {"log_info": [[]]}, 400, "a value of the wrong type"),
        ("/v2/logging", {"log_verbose_level": 2**40}, 400, "a value of the wrong type"),
        ("/v2/trace/setting", {"trace_level": ["TIMESTAMPS"]}, 501, "trace_level cannot be changed"),
        # A single value needs no list, and null resets a setting. Triton's client sends both.
        ("/v2/trace/setting", {"trace_level": "TIMESTAMPS"}, 501, "trace_level cannot be changed"),
        ("/v2/models/tiny/trace/setting", {"trace_level": None}, 501, "trace_level cannot be changed"),
        ("/v2/trace/setting", {"trace_rate": 1000}, 400, "a value of the wrong type"),
        ("/v2/trace/setting", {"trace_level": [None]}, 400, "a value of the wrong type"),
    ],
)
def test_settings_are_not_changed(
    http: httpx.Client, path: str, settings: dict[str, Any], code: int, said: str
) -> None:
    response = http.post(path, json=settings)
    assert said in response.json()["error"]
    assert response.status_code == code


HALF = '"a\\ud800"'


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("/v2/logging", f'{{{HALF}: "1"}}'),
        ("/v2/logging", f'{{"log_file": {HALF}}}'),
        ("/v2/trace/setting", f'{{"trace_file": [{HALF}]}}'),
        ("/v2/models/tiny/trace/setting", f'{{{HALF}: "1"}}'),
        ("/v2/repository/models/tiny/load", f'{{"parameters": {{{HALF}: "1"}}}}'),
        ("/v2/repository/models/tiny/load", f'{{"parameters": {{"config": {HALF}}}}}'),
        ("/v2/repository/models/tiny/load", '{"parameters": {"file:1/model.onnx": "\u00e9"}}'),
        ("/v2/repository/index", f'{{"ready": {HALF}}}'),
        ("/v2/systemsharedmemory/region/a/register", f'{{"key": {HALF}, "offset": 0, "byte_size": 1}}'),
    ],
)
def test_half_a_surrogate_pair_is_the_clients_error(http: httpx.Client, path: str, content: str) -> None:
    response = http.post(path, content=content)
    assert (response.status_code, set(response.json())) == (400, {"error"})


def test_classes_and_encoded_images_as_over_grpc(http: httpx.Client) -> None:
    image = picture("left")
    header = {
        "inputs": [
            {
                "name": "image",
                "datatype": "BYTES",
                "shape": [1, 1],
                "parameters": {"binary_data_size": len(image) + 4},
            }
        ],
        "outputs": [{"name": "probabilities", "parameters": {"classification": 2}}],
    }
    element = struct.pack("<I", len(image)) + image
    (output,) = http.post(INFER, **with_binary(header, element)).json()["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [1, 2])
    assert [text.split(":")[1:] for text in output["data"]] == [["1", "left"], ["0", "dark"]]


def test_shared_memory(tmp_path: Path) -> None:
    region = shared_memory.SharedMemory("cnnserve-test-rest", create=True, size=64)
    repository = tmp_path / "repository"
    write_version(repository / "tiny" / "1")
    tensor = body(data=None, parameters={"shared_memory_region": "in", "shared_memory_byte_size": 64})
    del tensor["inputs"][0]["data"]
    base = "/v2/systemsharedmemory/region/in"
    try:
        with (
            serving(tmp_path / "log", repository, "--shared-memory-prefix", "cnnserve-test") as server,
            httpx.Client(base_url=f"http://127.0.0.1:{server.http_port}") as http,
        ):
            wanted = {"key": "/cnnserve-test-rest", "offset": 0, "byte_size": 64}
            assert http.post(f"{base}/register", json={"key": 5}).status_code == 400
            assert http.post(f"{base}/register", json=wanted).json() == {}
            assert http.post(f"{base}/register", json=wanted).status_code == 409
            assert http.get("/v2/systemsharedmemory/status").json() == [{"name": "in"} | wanted]
            assert http.post(INFER, json=tensor).json()["outputs"][0]["data"][0] > 0.9
            assert http.post("/v2/systemsharedmemory/unregister").json() == {}
            assert http.get(f"{base}/status").status_code == 404
    finally:
        region.close()
        region.unlink()


def test_the_index_is_a_list(http: httpx.Client) -> None:
    rows = {(row["name"], row["version"]): row for row in http.post("/v2/repository/index").json()}
    assert rows["tiny", "1"] == {"name": "tiny", "version": "1", "state": "READY", "reason": ""}
    assert rows["altered", "1"]["state"] == "UNAVAILABLE"
    ready = http.post("/v2/repository/index", json={"ready": True}).json()
    assert {row["name"] for row in ready} == {"tiny", "plain"}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("path", [INFER, "/v2/models/tiny/versions/1/infer"])
def test_json_tensors(http: httpx.Client, path: str, nested: bool) -> None:
    images = np.zeros((2, SIDE, SIDE, 1), np.uint8)
    images[1] = 255
    request = body((images if nested else images.ravel()).tolist(), shape=[2, SIDE, SIDE, 1]) | {"id": "seven"}
    answer = http.post(path, json=request).json()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("tiny", "1", "seven")
    (output,) = answer["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("probabilities", "FP32", [2, 3])
    rows = np.reshape(output["data"], (2, 3))
    assert [CLASSES[index] for index in rows.argmax(axis=1)] == ["dark", "bright"]


@pytest.mark.parametrize("how", ["header", "output", "raw"])
def test_binary_tensors(http: httpx.Client, how: str) -> None:
    pixels = bytes([255]) * (SIDE * SIDE)
    if how == "raw":
        arguments: dict[str, Any] = {"content": pixels, "headers": {"Inference-Header-Content-Length": "0"}}
    else:
        header = body(parameters={"binary_data_size": len(pixels)})
        del header["inputs"][0]["data"]
        if how == "header":
            header["parameters"] = {"binary_data_output": True}
        else:
            header["outputs"] = [{"name": "probabilities", "parameters": {"binary_data": True}}]
        arguments = with_binary(header, pixels)
    response = http.post(INFER, **arguments)
    assert response.headers["content-type"] == "application/octet-stream"
    length = int(response.headers["inference-header-content-length"])
    (output,) = json.loads(response.content[:length])["outputs"]
    assert output["parameters"] == {"binary_data_size": 12}
    assert "data" not in output
    assert struct.unpack("<3f", response.content[length:])[2] > 0.9


def test_single_outputs_overrule_the_default(http: httpx.Client) -> None:
    request = body() | {
        "parameters": {"binary_data_output": True},
        "outputs": [{"name": "probabilities", "parameters": {"binary_data": False}}],
    }
    assert http.post(INFER, json=request).json()["outputs"][0]["data"][0] > 0.9


# The same bytes in every process, as they are in the names of the tests.
BOMB = gzip.compress(bytes(2**27), mtime=0)


@pytest.mark.parametrize(("coding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_packed_bodies(http: httpx.Client, coding: str, pack: Any) -> None:
    # The long id makes the response large enough to be compressed.
    request = body(ZEROS * 8, shape=[8, SIDE, SIDE, 1]) | {"id": "i" * 2000}
    headers = {"Content-Encoding": coding, "Accept-Encoding": coding}
    response = http.post(INFER, content=pack(json.dumps(request).encode()), headers=headers)
    assert response.headers["content-encoding"] == coding
    assert response.json()["outputs"][0]["shape"] == [8, 3]
    plain = http.post(INFER, json=request, headers={"Accept-Encoding": "gzip;q=0, identity"})
    assert "content-encoding" not in plain.headers
    assert plain.json() == response.json()


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ([], "the body is JSON of type list"),
        ({}, "has 0 inputs"),
        ({"inputs": 1}, "inputs is 1, expected a list of objects"),
        ({"inputs": [1]}, "inputs is [1], expected a list of objects"),
        (body() | {"id": 5}, "id of the request is 5"),
        (body() | {"id": "\ud800"}, "half a surrogate pair"),
        (body() | {"parameters": []}, "parameters of the request is []"),
        (body() | {"parameters": {"priority": None}}, "parameter 'priority' is None"),
        (body() | {"parameters": {"priority": 2**64}}, "parameter 'priority' is 18446744073709551616"),
        (body() | {"parameters": {"priority": "high"}}, "parameter 'priority' is 'high'"),
        (body() | {"parameters": {"binary_data_output": 1}}, "'binary_data_output' of the request is 1"),
        (body() | {"outputs": [{"name": "x"}]}, "asks for output 'x'"),
        (body(name="x"), "has input 'x'"),
        (body(name=5), "name of an input is 5"),
        (body(datatype="UINT9"), "datatype 'UINT9'"),
        (body(datatype="FP16"), "must be sent as binary data"),
        (body(datatype="FP32"), "expected UINT8"),
        (body(datatype="BYTES"), "has the value 0, expected strings"),
        (body(datatype="BOOL"), "has the value 0, expected true and false"),
        (body([1.5, *ZEROS[1:]]), "has the value 1.5, expected integers"),
        (body([True, *ZEROS[1:]]), "has the value True, expected integers"),
        (body([256, *ZEROS[1:]]), "has the value 256, which does not fit into UINT8"),
        (body([-1, *ZEROS[1:]]), "has the value -1, which does not fit into UINT8"),
        (body(["a", *ZEROS[1:]]), "has the value 'a', expected integers"),
        (body(ZEROS[1:]), "has 63 values, expected 64"),
        (body([ZEROS]), "not nested as in its shape"),
        (body([[[[0]] * SIDE] * SIDE, 1]), "not nested as in its shape"),
        (body("text"), "data of type str"),
        (body(shape=None), "has shape None, expected a list of at most 8 sizes"),
        (body(shape=[1] * 9), "has shape [1, 1, 1, 1, 1, 1, 1, 1, 1], expected a list of"),
        (body(shape=[1, SIDE, SIDE, True]), "has shape with size True"),
        (body(shape=[-1, SIDE, SIDE, 1]), "has shape with size -1"),
        (body(shape=[SIDE, SIDE]), "has shape [8, 8]"),
        ({"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, SIDE, SIDE, 1]}]}, "has neither data nor"),
        (body(parameters={"binary_data_size": 0}), "has both data and binary_data_size"),
        (body(parameters={"binary_data_size": 5}), "has both data and binary_data_size"),
        (body(ZEROS * 9, shape=[9, SIDE, SIDE, 1]), "at most 8"),
    ],
)
def test_bad_requests(http: httpx.Client, request_: Any, said: str) -> None:
    response = http.post(INFER, content=json.dumps(request_))
    assert response.status_code == 400
    assert said in response.json()["error"]


@pytest.mark.parametrize(
    ("content", "headers", "code", "said"),
    [
        (b"{", {}, 400, "the body is not valid JSON"),
        (b"\xff\xfe\xfd", {}, 400, "the body is not valid JSON"),
        (b"[" * 100_000, {}, 400, "the body is not valid JSON"),
        (b'{"inputs": [{"shape": [1' + b"0" * 5000 + b"]}]}", {}, 400, "the body is not valid JSON"),
        (b'{"id": NaN}', {}, 400, "JSON has no NaN; send it as binary data"),
        (b'{"x":"' + b"[" * 500_001 + b'"}', {}, 400, "has 500002 arrays and objects"),
        (b'"' + b" " * 2**22 + b'"', {}, 413, "the limit is 4194304 bytes; send tensors as binary data"),
        (bytes(2**22 + 1), {"Inference-Header-Content-Length": str(2**22 + 1)}, 400, "has 4194305 bytes, the limit is"),
        (b"{}", {"Inference-Header-Content-Length": "3"}, 400, "expected an integer from 0 to the body's length, 2"),
        (b"{}", {"Inference-Header-Content-Length": "-1"}, 400, "is '-1'"),
        (b"{}", {"Inference-Header-Content-Length": "²"}, 400, "Inference-Header-Content-Length is"),
        (b"{}x", {"Inference-Header-Content-Length": "2"}, 400, "has 1 bytes after"),
        (b"x", {"Inference-Header-Content-Length": "0"}, 400, "expected a multiple of 64"),
        (b"", {"Inference-Header-Content-Length": "0"}, 400, "has no rows"),
        (b"{}", {"Content-Encoding": "br"}, 415, "'br' is not supported"),
        (b"{}", {"Content-Encoding": "gzip"}, 400, "not valid gzip"),
        (gzip.compress(b"{}" * 99, mtime=0)[:-9], {"Content-Encoding": "gzip"}, 400, "ends too early"),
        (
            BOMB,
            {"Content-Encoding": "gzip"},
            413,
            "the body has more than 4194304 bytes",
        ),
        (b"{}", {"Grpc-Timeout": "soon"}, 400, "Grpc-Timeout is 'soon'"),
        (json.dumps(body()).encode(), {"Grpc-Timeout": "0n"}, 504, ""),
    ],
)
def test_bad_bodies_and_headers(
    http: httpx.Client, content: bytes, headers: dict[str, str], code: int, said: str
) -> None:
    encoded = {name: value.encode() for name, value in headers.items()}
    response = http.post(INFER, content=content, headers=encoded)
    assert said in response.json()["error"]
    assert response.status_code == code


def test_the_server_still_serves_after_bad_requests(http: httpx.Client, tiny_server: RunningServer) -> None:
    assert http.post("/v1/models/tiny:classify", content=picture("left")).status_code == 200
    assert "Traceback" not in tiny_server.log
    assert "failed" not in tiny_server.log
