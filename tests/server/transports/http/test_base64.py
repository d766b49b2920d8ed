"""Images as base64 in JSON, on `:classify` and on `:predict`, with a real server."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from cnnserve.errors import InvalidInput
from cnnserve.transports.http import base64_json
from support import CLASSES, HANG_S, SIDE, RunningServer, picture, serving, write_version

CLASSIFY, PREDICT = "/v1/models/tiny:classify", "/v1/models/tiny:predict"
TEXT = base64.b64encode(picture("left")).decode()
ROW = [[[255] if column < SIDE // 2 else [0] for column in range(SIDE)] for _ in range(SIDE)]
MIB = 2**20


@pytest.fixture(scope="module")
def http(tiny_server: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{tiny_server.http_port}", timeout=HANG_S) as client:
        yield client


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8", "application/octet-stream"])
def test_one_image_on_classify(http: httpx.Client, kind: str) -> None:
    body = json.dumps({"b64": TEXT})
    response = http.post(CLASSIFY, content=body, headers={"Content-Type": kind}, params={"top_k": 1})
    (result,) = response.json()["results"]
    assert [item["label"] for item in result["classes"]] == ["left"]


def test_several_images_on_classify(http: httpx.Client) -> None:
    bright = base64.b64encode(picture("bright")).decode()
    lines = "\n".join(TEXT[start : start + 76] for start in range(0, len(TEXT), 76))
    images = [lines, f"data:image/png;base64,{bright}", base64.b64encode(b"no image").decode()]
    body = {"images": [{"b64": text} for text in images]}
    left, bright_one, bad = http.post(CLASSIFY, json=body, params={"top_k": 1}).json()["results"]
    assert [one["classes"][0]["label"] for one in (left, bright_one)] == ["left", "bright"]
    assert "are not an image" in bad["error"]


@pytest.mark.parametrize(
    "instance", [{"b64": TEXT}, {"image": {"b64": TEXT}}, {"image_bytes": {"b64": TEXT}}, ROW, {"image": ROW}]
)
@pytest.mark.parametrize("path", [PREDICT, "/v1/models/tiny/versions/1:predict"])
def test_predict_gives_a_row_of_probabilities(http: httpx.Client, path: str, instance: Any) -> None:
    body = {"signature_name": "serving_default", "instances": [instance] * 3}
    response = http.post(path, content=json.dumps(body))
    assert response.status_code == 200, response.text
    predictions = response.json()["predictions"]
    assert [len(row) for row in predictions] == [len(CLASSES)] * 3
    assert all(max(row) == row[CLASSES.index("left")] for row in predictions)
    assert sum(predictions[0]) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        (CLASSIFY, {"b64": 5}, "b64 of the body is 5, expected a string"),
        (CLASSIFY, {"b64": "a*b="}, "b64 of the body is no base64"),
        (CLASSIFY, {"b64": TEXT[:-3]}, "b64 of the body is no base64"),
        (CLASSIFY, {"b64": TEXT, "topk": 1}, "the body has the unknown key 'topk' beside b64"),
        (CLASSIFY, {"images": [{"b64": TEXT}], "model": "m"}, "the body has the unknown key 'model', expected images"),
        (CLASSIFY, {"images": [TEXT]}, "the JSON has no images"),
        (CLASSIFY, {"images": {"b64": TEXT}}, "the JSON has no images"),
        (CLASSIFY, {}, "the JSON has no images"),
        (PREDICT, {}, "instances is None, expected a list"),
        (PREDICT, {"instances": []}, "instances is [], expected a list"),
        (PREDICT, {"inputs": [ROW]}, "the body has the unknown key 'inputs', expected instances"),
        (PREDICT, {"instances": [{"b64": TEXT}, ROW]}, "both images (b64) and other values"),
        (PREDICT, {"instances": [{"b64": TEXT, "x": 1}]}, "instance 0 has the unknown key 'x' beside b64"),
        (PREDICT, {"instances": [{"a": ROW, "b": ROW}]}, "an instance has the keys 'a, b'"),
        (PREDICT, {"instances": [{"image": ROW}, {"x": ROW}]}, "has the input 'x', the input of 'tiny' is 'image'"),
        (PREDICT, {"instances": [{"x": {"b64": TEXT}}]}, "has the input 'x', the input of 'tiny' is 'image'"),
        (PREDICT, {"instances": [{"": ROW}]}, "has the input ''"),
        (PREDICT, {"instances": [{"image_bytes": ROW}]}, "has the input 'image_bytes'"),
        (PREDICT, {"instances": [ROW[:-1]]}, "has shape [1, 7, 8, 1]"),
        (PREDICT, {"instances": [ROW, ROW[:-1]]}, "not nested as in its shape"),
        (PREDICT, {"instances": [{"b64": TEXT[:12]}]}, "image 0 of 1"),
        (PREDICT, {"instances": [5]}, "shape [1]"),
    ],
)
def test_bad_json_says_what_is_wrong(http: httpx.Client, path: str, body: Any, said: str) -> None:
    response = http.post(path, json=body)
    assert said in response.json()["error"]
    assert response.status_code == 400


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (f"{CLASSIFY}?topk=1", "query parameter 'topk' is unknown; did you mean top_k?"),
        (f"{CLASSIFY}?verbose=1", "query parameter 'verbose' is unknown; expected top_k"),
        (f"{CLASSIFY}?top_k=1&top_k=2", "query parameter 'top_k' is there twice"),
        (f"{PREDICT}?top_k=1", "query parameter 'top_k' is unknown; expected none"),
    ],
)
def test_unknown_query_parameters_are_refused(http: httpx.Client, path: str, said: str) -> None:
    response = http.post(path, json={"b64": TEXT})
    assert said in response.json()["error"]
    assert response.status_code == 400


@pytest.mark.parametrize("content", [TEXT.encode(), f"data:image/jpeg;base64,{TEXT}".encode(), b"/9j/4AAQSkZJRgABAQ"])
def test_base64_that_is_no_json_is_named(http: httpx.Client, content: bytes) -> None:
    error = http.post(CLASSIFY, content=content).json()["error"]
    assert "the image is base64 text; decode it" in error
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [content.decode()]}
    error = http.post("/v2/models/tiny/infer", json={"inputs": [tensor]}).json()["error"]
    assert "the image is base64 text; decode it" in error


def test_parameters_of_outputs_that_are_unknown_are_ignored(http: httpx.Client) -> None:
    """As those of inputs and of the request; MLServer's codecs put content_type on all three."""
    odd = {"content_type": "np"}
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, SIDE, SIDE, 1], "data": [ROW], "parameters": odd}
    body = {"inputs": [tensor], "outputs": [{"name": "probabilities", "parameters": odd}], "parameters": odd}
    assert http.post("/v2/models/tiny/infer", json=body).json()["outputs"][0]["name"] == "probabilities"


def test_images_may_be_larger_than_other_json(tmp_path: Path) -> None:
    write_version(tmp_path / "models" / "tiny" / "1")
    # A PNG with bytes after its end, which readers ignore.
    large = base64.b64encode(picture("left") + bytes(4 * MIB)).decode()
    with (
        serving(tmp_path / "log", tmp_path / "models", "--max-message-mib", "8") as server,
        httpx.Client(base_url=f"http://127.0.0.1:{server.http_port}", timeout=HANG_S) as http,
    ):
        (result,) = http.post(CLASSIFY, json={"b64": large}).json()["results"]
        assert result["classes"][0]["label"] == "left"
        (row,) = http.post(PREDICT, json={"instances": [{"b64": large}]}).json()["predictions"]
        assert max(row) == row[CLASSES.index("left")]
        for path in (CLASSIFY, PREDICT):
            response = http.post(path, json={"b64": "A" * 9 * MIB})
            assert response.status_code == 413
            error = response.json()["error"]
            assert "the limit is 8388608 bytes; send images as files of a form (multipart/form-data) or as" in error
        response = http.post(PREDICT, content=b'{"instances": [' + b"1," * (3 * MIB) + b"1]}")
        assert response.status_code == 400
        assert "only base64 images may be in it" in response.json()["error"]


def test_a_text_is_decoded_in_pieces_and_removed() -> None:
    data = bytes(range(256)) * 5000
    value = {"b64": base64.b64encode(data).decode()}
    assert base64_json.take(value, "the image") == data
    assert value == {}
    with pytest.raises(InvalidInput, match="no base64"):
        base64_json.take({"b64": "A" * (2**18 + 1)}, "the image")
