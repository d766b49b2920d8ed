"""The time that a client gives reaches the queue of the model, by every way in which requests come.

Each way has a model of its own, whose queue waits a minute for more requests, but no request longer than half of its
time: only a request whose deadline the batcher knows is answered before that deadline.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import grpc
import httpx
import pytest

from cnnserve.wire import classifier_pb2 as c
from cnnserve_client import Client
from oip import Oip, encoded, rows, tensor
from support import HANG_S, RunningServer, picture, serving, write_version

PATIENT = "dynamic_batching { max_queue_delay_microseconds: 60000000 }"
TIMEOUT_S = 12.0
LEFT = picture("left")

Way = Callable[[RunningServer, str], object]


def classify(server: RunningServer, model: str) -> str:
    with Client(server.address, timeout_s=TIMEOUT_S) as client:
        return client.classify([LEFT], model=model).results[0].top.label


def classify_stream(server: RunningServer, model: str, timeout_us: int = 0, timeout_s: float = TIMEOUT_S) -> str:
    request = c.ClassifyStreamRequest(id="1", timeout_us=timeout_us)
    request.request.model = model
    request.request.images.add(encoded=LEFT)
    with grpc.insecure_channel(server.address) as channel:
        stream = channel.stream_stream(
            "/cnnserve.v1.Classifier/ClassifyStream",
            request_serializer=c.ClassifyStreamRequest.SerializeToString,
            response_deserializer=c.ClassifyStreamResponse.FromString,
        )
        (answer,) = stream(iter([request]), timeout=timeout_s)
    assert not answer.HasField("error"), answer
    return str(answer.response.results[0].classes[0].label)


def own_time(server: RunningServer, model: str) -> str:
    """A stream that lives an hour, and a request in it that does not."""
    return classify_stream(server, model, int(TIMEOUT_S * 1e6), 3600)


def infer(server: RunningServer, model: str) -> str:
    with Oip(server.address) as oip:
        return str(oip.rpc("ModelInfer")(tensor(rows(), model), timeout=TIMEOUT_S).model_name)


def infer_known(server: RunningServer, model: str) -> str:
    """The third request of a kind, which the server answers without parsing it."""
    with Oip(server.address) as oip:
        return str(oip.rpc("ModelInfer")(tensor(rows(), model, id="3"), timeout=TIMEOUT_S).model_name)


def infer_images(server: RunningServer, model: str) -> str:
    with Oip(server.address) as oip:
        return str(oip.rpc("ModelInfer")(encoded(LEFT, model=model), timeout=TIMEOUT_S).model_name)


def infer_stream(server: RunningServer, model: str) -> str:
    with Oip(server.address) as oip:
        (answer,) = oip.stream(iter([tensor(rows(), model)]), timeout=TIMEOUT_S)
        assert not answer.error_message
        return str(answer.infer_response.model_name)


def post(server: RunningServer, path: str, **body: object) -> None:
    headers = {"Grpc-Timeout": f"{TIMEOUT_S:g}S"}
    url = f"http://127.0.0.1:{server.http_port}{path}"
    answer = httpx.post(url, headers=headers, timeout=HANG_S, **body)  # type: ignore[arg-type]
    assert answer.status_code == 200, answer.text


def classify_http(server: RunningServer, model: str) -> None:
    post(server, f"/v1/models/{model}:classify", content=LEFT)


def infer_http(server: RunningServer, model: str) -> None:
    data = rows().ravel().tolist()
    post(
        server,
        f"/v2/models/{model}/infer",
        json={"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 8, 8, 1], "data": data}]},
    )


WAYS: dict[str, Way] = {
    way.__name__: way
    for way in (
        classify,
        classify_stream,
        own_time,
        infer,
        infer_known,
        infer_images,
        infer_stream,
        classify_http,
        infer_http,
    )
}
TRANSPORTS = ("core", "aio")

Answers = dict[tuple[str, str], "Future[float]"]


def ask(server: RunningServer, name: str) -> float:
    """Returns how long the answer took, in seconds."""
    if name == "infer_known":
        for number in "12":
            with Oip(server.address) as oip:
                oip.rpc("ModelInfer")(tensor(rows(), name, id=number), timeout=1)
    began = time.monotonic()
    WAYS[name](server, name)
    return time.monotonic() - began


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Answers]:
    """What each way to each gRPC transport gives. All at once: it is waiting, not work."""
    root = tmp_path_factory.mktemp("patient")
    for name in WAYS:
        write_version(root / "r" / name / "1")
        (root / "r" / name / "config.pbtxt").write_text(PATIENT)
    with contextlib.ExitStack() as stack:
        servers = {
            transport: stack.enter_context(
                serving(root / f"{transport}.log", root / "r", "--grpc-transport", transport)
            )
            for transport in TRANSPORTS
        }
        pool = stack.enter_context(ThreadPoolExecutor(len(servers) * len(WAYS)))
        yield {(transport, name): pool.submit(ask, servers[transport], name) for transport in servers for name in WAYS}


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("way", WAYS)
def test_the_deadline_reaches_the_batcher(answers: Answers, transport: str, way: str) -> None:
    seconds = answers[transport, way].result(HANG_S)
    # The wait for more requests was cut short, not left out.
    assert TIMEOUT_S / 4 < seconds < TIMEOUT_S
