"""Random bodies and headers: the status is never 500, every request gets a response, and valid requests succeed."""

import json
import os
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support import HANG_S, SIDE, RunningServer, picture

# If `make soak` sets it, hypothesis tries more examples.
MINUTES = float(os.environ.get("CNNSERVE_SOAK_MINUTES", "0"))
LEFT = picture("left")
PATHS = st.sampled_from(
    [
        "/v2/models/tiny/infer",
        "/v2/models/tiny/versions/1/infer",
        "/v1/models/tiny:classify",
        "/v1/models/tiny:predict",
        "/v2/repository/index",
        "/v2/repository/models/tiny/load",
        "/v2/logging",
        "/v2/trace/setting",
        "/v2/systemsharedmemory/region/x/register",
    ]
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=9)
    # Values that JSON can represent, but the next layers cannot.
    | st.sampled_from(["\ud800", 10**400]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)
PARAMETERS = st.dictionaries(
    st.sampled_from(["binary_data_size", "binary_data", "binary_data_output", "classification", "timeout", "priority"])
    | st.text(max_size=5),
    VALUES,
    max_size=3,
)
TENSORS = st.fixed_dictionaries(
    {},
    optional={
        "name": st.just("image") | VALUES,
        "datatype": st.sampled_from(["UINT8", "FP32", "BOOL", "BYTES", "FP16", "INT64"]) | VALUES,
        "shape": st.just([1, SIDE, SIDE, 1]) | st.lists(st.integers(-2, 2**40), max_size=10) | VALUES,
        "data": st.just([0] * 64) | st.lists(VALUES, min_size=64, max_size=64) | VALUES,
        "parameters": PARAMETERS | VALUES,
    },
)
REQUESTS = st.fixed_dictionaries(
    {"inputs": st.lists(TENSORS, max_size=2) | VALUES},
    optional={
        "id": VALUES,
        "parameters": PARAMETERS | VALUES,
        "outputs": st.lists(st.fixed_dictionaries({}, optional={"name": VALUES, "parameters": PARAMETERS})) | VALUES,
    },
)
BODIES = (REQUESTS | VALUES).map(lambda value: json.dumps(value).encode()) | st.binary(max_size=200)
FORM = b'--x\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\n' + LEFT + b"\r\n--x--\r\n"
LENGTHS = st.integers(-1, 300).map(str) | st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=5)
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "Inference-Header-Content-Length": LENGTHS,
        "Content-Encoding": st.sampled_from(["gzip", "deflate", "identity", "br", ""]),
        "Accept-Encoding": st.sampled_from(["gzip", "deflate;q=0", "*", ";;", ","]),
        "Grpc-Timeout": st.sampled_from(["1S", "0n", "1", "99999999H", "x"]),
        "Content-Type": st.sampled_from(
            [
                "application/json",
                "image/png",
                "multipart/form-data",
                "multipart/form-data; boundary=x",
                "text/plain",
                "/",
            ]
        )
        | st.builds("multipart/form-data; boundary={}; charset={}".format, LENGTHS, LENGTHS),
    },
)


@pytest.fixture(scope="module")
def http(tiny_server: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{tiny_server.http_port}", timeout=HANG_S) as client:
        yield client


@settings(
    max_examples=max(400, int(MINUTES * 5000)),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    path=PATHS,
    body=BODIES | st.integers(0, len(FORM)).map(lambda size: FORM[:size]),
    headers=HEADERS,
)
def test_nothing_is_a_500(http: httpx.Client, path: str, body: bytes, headers: dict[str, str]) -> None:
    response = http.post(path, content=body, headers=headers)
    assert response.status_code != 500
    if response.status_code != 200:
        assert set(json.loads(response.content)) == {"error"}, (response.status_code, response.content)


def test_the_server_still_serves_after_bad_requests(http: httpx.Client, tiny_server: RunningServer) -> None:
    answer: Any = http.post("/v1/models/tiny:classify", content=LEFT).json()
    assert answer["results"][0]["classes"][0]["label"] == "left"
    assert " failed" not in tiny_server.log
    assert "Traceback" not in tiny_server.log
