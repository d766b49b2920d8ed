"""A response that exceeds the server's message limit is an error of its request: not of gRPC, nor of other requests."""

from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from cnnserve.wire import classifier_pb2 as c
from cnnserve.wire import open_inference_pb2 as o
from oip import Oip, rows, strings, tensor, with_parameter
from support import CLASSES, HANG_S, WIDE_IMAGE, RunningServer, picture, serving, wide_onnx, write_version, write_wide

LIMIT = 2**20
# One row of the models fits into a message of 1 MiB, two rows do not.
WIDE = 140_000
FULL = "the response has 1120"
CLASSIFIER = "cnnserve.v1.Classifier"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    root = tmp_path_factory.mktemp("answers") / "r"
    write_wide(root, WIDE)
    # The labels are so long that five classes of each of three images do not fit.
    named = root / "named"
    (named / "1").mkdir(parents=True)
    (named / "1" / "model.onnx").write_bytes(wide_onnx(5))
    (named / "labels.txt").write_text("\n".join(str(index) * 80_000 for index in range(5)))
    (named / "config.pbtxt").write_text(
        WIDE_IMAGE + 'output { name: "scores" data_type: TYPE_FP32 dims: 5 label_filename: "labels.txt" }'
    )
    write_version(root / "tiny" / "1")
    with serving(root.parent / "log", root, "--max-message-mib", "1") as server:
        yield server
        assert "Traceback" not in server.log


def executions(oip: Oip, model: str) -> int:
    [row] = oip("ModelStatistics", o.ModelStatisticsRequest(name=model)).model_stats
    count: int = row.execution_count
    return count


@pytest.mark.parametrize(("model", "runs"), [("fixed", 0), ("free", 1)])
def test_infer_says_size_limit_and_fix(oip: Oip, model: str, runs: int) -> None:
    before = executions(oip, model)
    code, details = oip.fails("ModelInfer", tensor(rows(2), model))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert FULL in details
    assert "the limit is 10484" in details
    assert "send fewer rows" in details
    assert "--max-message-mib" in details
    # If the file declares the size of rows, the server refuses the request without a run.
    assert executions(oip, model) - before == runs
    assert len(oip("ModelInfer", tensor(rows(1), model)).raw_output_contents[0]) == 4 * WIDE


def test_classes_of_a_large_output_fit(oip: Oip) -> None:
    request = tensor(rows(2), "fixed", outputs=[{"name": "scores"}])
    with_parameter(request.outputs[0], "classification", int64_param=1)
    assert [text.split(":")[1] for text in strings(oip("ModelInfer", request))] == [str(WIDE - 1)] * 2


def test_classes_with_long_labels_do_not_fit(oip: Oip) -> None:
    request = tensor(rows(3), "named", outputs=[{"name": "scores"}])
    with_parameter(request.outputs[0], "classification", int64_param=5)
    code, details = oip.fails("ModelInfer", request)
    assert (code, "the response has 1200" in details) == (grpc.StatusCode.INVALID_ARGUMENT, True), details


def test_the_id_counts_towards_the_size(oip: Oip) -> None:
    code, details = oip.fails("ModelInfer", tensor(rows(1), "fixed", id="x" * 500_000))
    assert (code, "the response has 1060" in details) == (grpc.StatusCode.INVALID_ARGUMENT, True), details


def test_a_stream_goes_on(oip: Oip) -> None:
    requests = [tensor(rows(count), model, id=model) for count in (1, 2, 1) for model in ("fixed", "free", "tiny")]
    answers = list(oip.stream(iter(requests)))
    assert [FULL in answer.error_message for answer in answers] == 3 * [False] + 2 * [True] + 4 * [False]
    assert [answer.infer_response.id for answer in answers] == 3 * ["fixed", "free", "tiny"]
    assert len(answers[-1].infer_response.outputs) == 1


def test_an_error_fits_beside_any_id_and_name(oip: Oip) -> None:
    """IDs and names may be as large as a message, and the response has to contain the error as well."""
    huge = LIMIT - 1000
    requests = [
        o.ModelInferRequest(model_name="nobody", id="x" * huge),
        o.ModelInferRequest(model_name="é" * (huge // 2)),
        tensor(rows(1)),
    ]
    answers = list(oip.stream(iter(requests)))
    assert ["is not in the model repository" in answer.error_message for answer in answers[:1]] == [True]
    assert [bool(answer.error_message) for answer in answers] == [True, True, False]
    assert len(answers[0].infer_response.id) == len(answers[1].infer_response.model_name) == 10_000
    stream = oip.channel.stream_stream(
        f"/{CLASSIFIER}/ClassifyStream",
        request_serializer=c.ClassifyStreamRequest.SerializeToString,
        response_deserializer=c.ClassifyStreamResponse.FromString,
    )
    lost = c.ClassifyStreamRequest(id="x" * huge, request=c.ClassifyRequest(model="nobody"))
    good = c.ClassifyStreamRequest(id="2", request=images(1))
    beside = c.ClassifyStreamRequest(id="y" * 500_000, request=images(2))
    answered = list(stream(iter([lost, beside, good]), timeout=HANG_S))
    assert sorted((answer.id[0], len(answer.id), answer.WhichOneof("outcome")) for answer in answered) == [
        ("2", 1, "response"),
        ("x", 10_000, "error"),
        ("y", 10_000, "error"),
    ]


def test_a_stream_of_errors_ends_with_its_status(oip: Oip) -> None:
    stream = oip.stream(iter([tensor(rows(2), "free")]), metadata=[("triton_grpc_error", "true")])
    with pytest.raises(grpc.RpcError) as caught:
        next(stream)
    assert (caught.value.code(), FULL in caught.value.details()) == (grpc.StatusCode.INVALID_ARGUMENT, True)


@pytest.mark.parametrize("model", ["fixed", "free"])
def test_rest_infer(server: RunningServer, model: str) -> None:
    tensor: dict[str, Any] = {"name": "image", "datatype": "UINT8"}
    parameters = {"parameters": {"binary_data_output": True}}
    with httpx.Client(base_url=f"http://127.0.0.1:{server.http_port}", timeout=HANG_S) as http:
        two, one = (
            http.post(
                f"/v2/models/{model}/infer",
                json={"inputs": [tensor | {"shape": [count, 8, 8, 1], "data": [0] * 64 * count}], **parameters},
            )
            for count in (2, 1)
        )
    assert (two.status_code, FULL in two.json()["error"]) == (400, True)
    assert one.status_code == 200
    assert one.content.endswith(np.zeros(WIDE, np.float32).tobytes())


def test_json_may_be_larger_than_the_message(server: RunningServer) -> None:
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 8, 8, 1], "data": [0] * 64}
    with httpx.Client(base_url=f"http://127.0.0.1:{server.http_port}", timeout=HANG_S) as http:
        # A quotation mark takes two bytes in JSON.
        answer = http.post("/v2/models/fixed/infer", json={"id": '"' * 400_000, "inputs": [tensor]})
        assert answer.status_code == 400
        assert "ask for binary data (binary_data_output)" in answer.json()["error"]


def images(count: int, top_k: int = 0) -> c.ClassifyRequest:
    return c.ClassifyRequest(model="named", top_k=top_k, images=[{"encoded": picture("left")}] * count)


def test_classify_over_grpc_and_its_stream(oip: Oip) -> None:
    classify = oip.channel.unary_unary(
        f"/{CLASSIFIER}/Classify",
        request_serializer=c.ClassifyRequest.SerializeToString,
        response_deserializer=c.ClassifyResponse.FromString,
    )
    with pytest.raises(grpc.RpcError) as caught:
        classify(images(3), timeout=HANG_S)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "the response has 1200" in caught.value.details()
    assert "ask for a smaller top_k, send fewer images" in caught.value.details()
    assert len(classify(images(3, top_k=1), timeout=HANG_S).results) == 3
    stream = oip.channel.stream_stream(
        f"/{CLASSIFIER}/ClassifyStream",
        request_serializer=c.ClassifyStreamRequest.SerializeToString,
        response_deserializer=c.ClassifyStreamResponse.FromString,
    )
    requests = [c.ClassifyStreamRequest(id=str(count), request=images(count)) for count in (1, 3, 2)]
    answers = {answer.id: answer for answer in stream(iter(requests), timeout=HANG_S)}
    assert {number: answer.WhichOneof("outcome") for number, answer in answers.items()} == {
        "1": "response",
        "3": "error",
        "2": "response",
    }
    assert answers["3"].error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert "the response has 1200" in answers["3"].error.message


def test_classify_over_http(server: RunningServer) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{server.http_port}", timeout=HANG_S) as http:
        answers = [
            http.post("/v1/models/named:classify", files=[("image", picture("left"))] * count) for count in (3, 2)
        ]
    assert [answer.status_code for answer in answers] == [400, 200]
    assert "the response has 1200" in answers[0].json()["error"]


def test_a_response_that_no_request_can_make_smaller(tmp_path_factory: pytest.TempPathFactory) -> None:
    """If no request can make the response smaller, the error names the server's setting. Here, labels are very long."""
    root = tmp_path_factory.mktemp("labels")
    version = root / "r" / "tiny" / "1"
    version.mkdir(parents=True)
    (version / "model.onnx").write_bytes(wide_onnx(5))
    labels = "\n".join([*CLASSES[:2], *("x" * 300_000 for _ in range(4))])
    (version.parent / "labels.txt").write_text(labels)
    config = WIDE_IMAGE + 'output { name: "scores" data_type: TYPE_FP32 dims: 5 label_filename: "labels.txt" }'
    (version.parent / "config.pbtxt").write_text(config)
    with serving(root / "log", root / "r", "--max-message-mib", "1") as server, Oip(server.address) as oip:
        get_model = oip.channel.unary_unary(
            f"/{CLASSIFIER}/GetModel",
            request_serializer=c.GetModelRequest.SerializeToString,
            response_deserializer=c.GetModelResponse.FromString,
        )
        with pytest.raises(grpc.RpcError) as caught:
            get_model(c.GetModelRequest(model="tiny"), timeout=HANG_S)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "the response has 1200" in caught.value.details()
        assert "the limit is 1048576 bytes; start the server with a larger --max-message-mib" in caught.value.details()
        assert "Traceback" not in server.log
