"""Classify on a model with a million classes: the number of classes is limited, and sorting blocks no other request."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from cnnserve.wire import classifier_pb2 as c
from cnnserve.wire import open_inference_pb2 as o
from oip import Oip
from support import HANG_S, WIDE_IMAGE, RunningServer, picture, serving, write_wide

CLASSES = 1_000_000
REFUSED = (
    "the request asks for 1000000 classes of each of 2 images, the limit of a response is 100000 classes; lower top_k"
)
SERVICE = "cnnserve.v1.Classifier"
LABELS = tuple(f"class {number}" for number in range(CLASSES))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    root = tmp_path_factory.mktemp("many") / "r"
    write_wide(root, CLASSES)
    for name in ("fixed", "free"):
        (root / name / "config.pbtxt").write_text(WIDE_IMAGE)
    with (root / "fixed" / "config.pbtxt").open("a") as config:
        config.write(f'output {{ name: "scores" data_type: TYPE_FP32 dims: {CLASSES} label_filename: "labels.txt" }}')
    (root / "fixed" / "labels.txt").write_text("".join(f"{label}\n" for label in LABELS))
    with serving(root.parent / "log", root) as server:
        yield server
        assert "Traceback" not in server.log


def asking(model: str, count: int, top_k: int) -> c.ClassifyRequest:
    return c.ClassifyRequest(model=model, top_k=top_k, images=[{"encoded": picture("bright")}] * count)


def classify(oip: Oip, request: c.ClassifyRequest) -> c.ClassifyResponse:
    answer: c.ClassifyResponse = oip.channel.unary_unary(
        f"/{SERVICE}/Classify",
        request_serializer=c.ClassifyRequest.SerializeToString,
        response_deserializer=c.ClassifyResponse.FromString,
    )(request, timeout=HANG_S)
    return answer


def runs(oip: Oip) -> int:
    return sum(row.execution_count for row in oip("ModelStatistics").model_stats)


@pytest.mark.parametrize("model", ["fixed", "free"])
@pytest.mark.parametrize("top_k", [CLASSES, 2**32 - 1])
def test_too_many_classes(oip: Oip, model: str, top_k: int) -> None:
    before = runs(oip)
    with pytest.raises(grpc.RpcError) as caught:
        classify(oip, asking(model, 2, top_k))
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.INVALID_ARGUMENT, told(REFUSED))
    # The self-test has counted the classes, so the server refuses the request without a run.
    assert runs(oip) == before
    with pytest.raises(grpc.RpcError):
        classify(oip, asking(model, 2, 50_001))


def told(text: str) -> str:
    return f"{text}, send fewer images, or get all values with ModelInfer"


def test_the_largest_number_of_classes(oip: Oip) -> None:
    answer = classify(oip, asking("fixed", 2, 50_000))
    assert [len(result.classes) for result in answer.results] == [50_000, 50_000]
    assert [item.index for item in answer.results[1].classes[:3]] == [CLASSES - 1, CLASSES - 2, CLASSES - 3]
    assert [len(result.classes) for result in classify(oip, asking("fixed", 2, 0)).results] == [5, 5]


def test_a_stream_goes_on(oip: Oip) -> None:
    stream = oip.channel.stream_stream(
        f"/{SERVICE}/ClassifyStream",
        request_serializer=c.ClassifyStreamRequest.SerializeToString,
        response_deserializer=c.ClassifyStreamResponse.FromString,
    )
    requests = [c.ClassifyStreamRequest(id=str(k), request=asking("fixed", 2, k)) for k in (3, CLASSES, 4)]
    answers = {answer.id: answer for answer in stream(iter(requests), timeout=HANG_S)}
    assert len(answers["4"].response.results[0].classes) == 4
    assert len(answers["3"].response.results[0].classes) == 3
    error = answers[str(CLASSES)].error
    assert (error.code, error.message) == (grpc.StatusCode.INVALID_ARGUMENT.value[0], told(REFUSED))


def test_over_http(server: RunningServer) -> None:
    files = [("image", picture("bright"))] * 2
    with httpx.Client(base_url=f"http://127.0.0.1:{server.http_port}", timeout=HANG_S) as http:
        answers = [http.post(f"/v1/models/fixed:classify?top_k={k}", files=files) for k in (CLASSES, 3)]
    assert (answers[0].status_code, answers[0].json()) == (400, {"error": told(REFUSED)})
    best = answers[1].json()["results"][0]["classes"]
    assert [item["index"] for item in best] == [CLASSES - 1, CLASSES - 2, CLASSES - 3]


def test_sorting_millions_of_values_holds_up_nobody(oip: Oip) -> None:
    """Sorting takes most of the time of such a request. Other requests are answered meanwhile.

    Other processes may delay a small request now and then; a sort on the event loop delays one every time.
    """

    def sort() -> None:
        assert len(classify(oip, asking("fixed", 32, 5)).results) == 32

    assert any(longest_wait(oip, sort) < 0.2 for _ in range(3))


def test_many_large_responses_hold_up_nobody(oip: Oip) -> None:
    request = asking("fixed", 1, 100_000)

    def ask() -> None:
        # The client does not read the responses: its work would count as the server's.
        call = oip.channel.unary_unary(f"/{SERVICE}/Classify", c.ClassifyRequest.SerializeToString)
        sizes = [len(future.result()) for future in [call.future(request, timeout=HANG_S) for _ in range(8)]]
        assert min(sizes) > 2_000_000

    assert any(longest_wait(oip, ask) < 0.2 for _ in range(3))


@pytest.fixture
def get_model(server: RunningServer) -> Iterator[Any]:
    """GetModel as bytes, by a channel that takes large messages."""
    with grpc.insecure_channel(server.address, [("grpc.max_receive_message_length", -1)]) as channel:
        yield channel.unary_unary(f"/{SERVICE}/GetModel", c.GetModelRequest.SerializeToString)


def test_a_million_labels_arrive_and_hold_up_nobody(oip: Oip, get_model: Any) -> None:
    def ask() -> None:
        for future in [get_model.future(c.GetModelRequest(model="fixed"), timeout=HANG_S) for _ in range(4)]:
            assert len(future.result()) > 13_000_000

    assert any(longest_wait(oip, ask) < 0.5 for _ in range(3))
    many, few = (
        c.GetModelResponse.FromString(get_model(c.GetModelRequest(model=name), timeout=HANG_S))
        for name in ("fixed", "free")
    )
    [version] = many.model.versions
    assert tuple(version.labels) == LABELS
    assert (many.model.name, many.max_message_bytes) == ("fixed", few.max_message_bytes)
    assert (version.class_count, version.state) == (CLASSES, c.MODEL_STATE_READY)
    assert not few.model.versions[0].labels


def longest_wait(oip: Oip, act: Callable[[], None]) -> float:
    """Returns the longest time of small requests beside the large ones of `act`, as a share of the time of `act`."""
    done = threading.Event()
    waits = []

    def ask() -> None:
        while not done.is_set():
            started = time.perf_counter()
            oip("ServerLive", o.ServerLiveRequest())
            waits.append(time.perf_counter() - started)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        started = time.perf_counter()
        act()
        took = time.perf_counter() - started
    finally:
        done.set()
        thread.join()
    print(f"{took:.2f} s, others waited at most {max(waits) * 1e3:.0f} ms; median {np.median(waits) * 1e3:.1f}")
    return max(waits) / took
