"""The server refuses responses that would block the event loop, and with it all other requests."""

from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from cnnserve.api import classification_output
from cnnserve.errors import InvalidInput
from cnnserve.wire import open_inference_pb2 as o
from oip import Oip, strings, with_parameter
from support import HANG_S, RunningServer, free_onnx, serving

SIDE = 400


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    root = tmp_path_factory.mktemp("large")
    for name, model in (("fixed", free_onnx(SIDE)), ("free", free_onnx())):
        (root / "r" / name / "1").mkdir(parents=True)
        (root / "r" / name / "1" / "model.onnx").write_bytes(model)
    with serving(root / "log", root / "r") as server:
        yield server


def best(model: str, k: int) -> o.ModelInferRequest:
    request = o.ModelInferRequest(model_name=model, raw_input_contents=[bytes(4 * SIDE * SIDE)])
    request.inputs.add(name="image", datatype="FP32", shape=[1, SIDE, SIDE])
    with_parameter(request.outputs.add(name="scores"), "classification", int64_param=k)
    return request


@pytest.mark.parametrize(("model", "runs"), [("fixed", 0), ("free", 1)])
def test_too_many_classes_as_texts(server: RunningServer, model: str, runs: int) -> None:
    with Oip(server.address) as oip:
        code, details = oip.fails("ModelInfer", best(model, SIDE * SIDE))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "160000 classes as texts, the limit is 100000" in details
        # If the file declares the number of classes, the server refuses the request without a run.
        [row] = oip("ModelStatistics", o.ModelStatisticsRequest(name=model)).model_stats
        assert row.execution_count == runs
        assert len(strings(oip("ModelInfer", best(model, 3)))) == 3


def test_limits_count_rows() -> None:
    classification_output.check_size(100, 1000, 1000, "y")
    classification_output.check_size(128, 21_841, 5, "y")
    with pytest.raises(InvalidInput, match="output 'y': 101000 classes as texts"):
        classification_output.check_size(101, 1000, 2000, "y")
    with pytest.raises(InvalidInput, match="output 'y': a row has 1000001 values, the limit is 1000000"):
        classification_output.check_size(1, 1_000_001, 1, "y")
    with pytest.raises(InvalidInput, match="output 'y': 5 rows of 1000000 values, the limit is 4000000"):
        classification_output.check_size(5, 1_000_000, 1, "y")


def test_too_many_numbers_as_json(server: RunningServer) -> None:
    side = 600
    body = np.zeros((1, side, side), np.float32).tobytes()
    tensor: dict[str, Any] = {"name": "image", "datatype": "FP32", "shape": [1, side, side]}
    tensor["parameters"] = {"binary_data_size": len(body)}
    with httpx.Client(base_url=f"http://127.0.0.1:{server.http_port}", timeout=HANG_S) as http:
        answers = []
        for binary in (False, True):
            header = httpx.Response(
                200, json={"inputs": [tensor], "parameters": {"binary_data_output": binary}}
            ).content
            length = {"Inference-Header-Content-Length": str(len(header))}
            answers.append(http.post("/v2/models/free/infer", content=header + body, headers=length))
    assert answers[0].status_code == 400
    assert "360000 values as JSON, the limit is 250000; ask for binary data" in answers[0].text
    assert answers[1].status_code == 200
    assert answers[1].content.endswith(body)
