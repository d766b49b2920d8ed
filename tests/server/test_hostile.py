"""Malicious requests to a real server: it refuses them at once with a clear text, and no other request waits."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from cnnserve.wire import classifier_pb2 as c
from cnnserve.wire import open_inference_pb2 as o
from support import CLASSES, HANG_S, SIDE, RunningServer, cpu_seconds, picture, png, serving, write_version

CLASSIFY = "/cnnserve.v1.Classifier/Classify"
STREAM = "/cnnserve.v1.Classifier/ClassifyStream"
INFER = "/inference.GRPCInferenceService/ModelInfer"


@pytest.fixture(scope="module")
def channel(tiny_server: RunningServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(tiny_server.address, options=[("grpc.max_send_message_length", -1)]) as channel:
        yield channel


def send(channel: grpc.Channel, method: str, data: bytes, timeout: float = HANG_S) -> tuple[grpc.StatusCode, str]:
    """Returns code and text of the status of a call with these bytes as its message."""
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(method)(data, timeout=timeout)
    return caught.value.code(), caught.value.details()


def tensor(shape: list[int], data: bytes = b"") -> o.ModelInferRequest:
    request = o.ModelInferRequest(model_name="tiny")
    request.inputs.add(name="image", datatype="UINT8", shape=shape)
    request.raw_input_contents.append(data)
    return request


def typed(count: int) -> o.ModelInferRequest:
    request = o.ModelInferRequest(model_name="tiny")
    item = request.inputs.add(name="image", datatype="UINT8", shape=[count])
    item.contents.uint_contents.extend([1] * count)
    return request


MANY_IMAGES = c.ClassifyRequest(model="tiny", images=[c.Image(encoded=b"x")] * 1_000_000)
MANY_INPUTS = o.ModelInferRequest(model_name="tiny", inputs=[o.ModelInferRequest.InferInputTensor()] * 1_000_000)


@pytest.mark.parametrize(
    ("method", "request_", "said"),
    [
        (INFER, tensor([2] * 5_000_000), "5000000 dimensions"),
        (INFER, tensor([1] * 65, b"1"), "65 dimensions"),
        (INFER, tensor([0, 2**62, 2**62]), "every size must be"),
        (INFER, typed(10_000_000), "bytes of numbers in lists"),
        (INFER, MANY_INPUTS, "more than 20000 fields"),
        (CLASSIFY, MANY_IMAGES, "more than 20000 fields"),
    ],
    ids=["dims", "rank", "product", "typed", "inputs", "images"],
)
def test_a_costly_request_is_refused_before_it_costs(
    channel: grpc.Channel, tiny_server: RunningServer, method: str, request_: object, said: str
) -> None:
    began = cpu_seconds(tiny_server.process)
    code, details = send(channel, method, request_.SerializeToString())  # type: ignore[attr-defined]
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert said in details
    # Without the checks, the worst of these took minutes. Reading a large message takes a fraction of a second.
    assert cpu_seconds(tiny_server.process) - began < 5


@pytest.mark.parametrize("method", [CLASSIFY, INFER, "/grpc.health.v1.Health/Check"])
@pytest.mark.parametrize("data", [b"\x0a\x02\xff\xfe", b"\xff" * 10, b"\x0a\x7f"])
def test_bytes_that_are_no_message_are_the_callers_error(channel: grpc.Channel, method: str, data: bytes) -> None:
    code, details = send(channel, method, data)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert f"the {len(data)} bytes of the request are no" in details


def test_bytes_that_are_no_message_end_a_stream(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(channel.stream_stream(STREAM)(iter([b"\xff\xff"]), timeout=HANG_S))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("length", [20_000, 5_000_000])
def test_long_values_are_shortened_in_errors(channel: grpc.Channel, length: int) -> None:
    code, details = send(channel, CLASSIFY, c.ClassifyRequest(model="m" * length).SerializeToString())
    assert code is grpc.StatusCode.NOT_FOUND
    assert len(details) < 1100
    bad = tensor([1])
    bad.inputs[0].datatype = "x" * length
    code, details = send(channel, INFER, bad.SerializeToString())
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert len(details) < 1100


def test_a_streams_timeout_ends_the_decoding_too(channel: grpc.Channel, tiny_server: RunningServer) -> None:
    """The server does not decode large images of requests whose deadline has passed."""
    slow = c.ClassifyRequest(model="tiny", images=[c.Image(encoded=png(np.zeros((5000, 5000), np.uint8)))] * 8)
    messages = [
        c.ClassifyStreamRequest(id=str(index), timeout_us=20_000, request=slow).SerializeToString()
        for index in range(8)
    ]
    began = cpu_seconds(tiny_server.process)
    answers = [
        c.ClassifyStreamResponse.FromString(a) for a in channel.stream_stream(STREAM)(iter(messages), timeout=HANG_S)
    ]
    codes = [answer.error.code for answer in answers]
    took = cpu_seconds(tiny_server.process) - began
    assert codes == [4] * 8
    channel.unary_unary(CLASSIFY)(slow.SerializeToString(), timeout=HANG_S)
    alone = cpu_seconds(tiny_server.process) - began - took
    # Decoding all 64 images takes eight times as much as one request of eight images without a timeout.
    assert took < 4 * alone


def test_bad_images_of_every_kind_touch_no_others(channel: grpc.Channel) -> None:
    """Small and large, valid and broken images in one request: each has its own result, in order."""
    large = png(np.full((900, 1200), 255, np.uint8))
    images = {
        "left": picture("left"),
        "damaged": picture("left")[:-30],
        "bright": large,
        "is TIFF": b"II*\0" + bytes(100),
        "send a less elongated image": png(np.zeros((7_000_000, 1), np.uint8)),
        "this model's limit is 50,000,000 pixels": png(np.zeros((7_200, 7_200), np.uint8)),
        "dark": picture("dark"),
        "empty": b"",
    }
    request = c.ClassifyRequest(model="tiny", images=[c.Image(encoded=data) for data in images.values()])
    answer = c.ClassifyResponse.FromString(channel.unary_unary(CLASSIFY)(request.SerializeToString(), timeout=HANG_S))
    for expected, result in zip(images, answer.results, strict=True):
        if expected in CLASSES:
            assert result.classes[0].label == expected
        else:
            assert result.error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
            assert expected in result.error.message


def test_the_server_still_serves_and_has_logged_nothing(channel: grpc.Channel, tiny_server: RunningServer) -> None:
    request = c.ClassifyRequest(model="tiny", images=[c.Image(encoded=picture("left"))])
    answer = c.ClassifyResponse.FromString(channel.unary_unary(CLASSIFY)(request.SerializeToString(), timeout=HANG_S))
    assert answer.results[0].classes[0].label == "left"
    row = tensor([1, SIDE, SIDE, 1], bytes(SIDE * SIDE))
    o.ModelInferResponse.FromString(channel.unary_unary(INFER)(row.SerializeToString(), timeout=HANG_S))
    assert "Traceback" not in tiny_server.log
    assert "failed" not in tiny_server.log


def test_an_http_client_that_never_reads_does_not_hold_up_the_end(tmp_path: Path) -> None:
    write_version(tmp_path / "repository" / "tiny" / "1")
    with (
        serving(tmp_path / "log", tmp_path / "repository") as server,
        socket.create_connection(("127.0.0.1", server.http_port)) as connection,
    ):
        connection.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            for _ in range(200):
                connection.send(b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n" * 2000)
        assert server.terminate() == 0


@pytest.mark.parametrize("transport", ["core", "aio"])
def test_requests_beyond_the_memory_budget_wait_or_are_refused(tmp_path: Path, transport: str) -> None:
    """The first request fills the budget while it is decoded. On the core, the next messages wait at their senders;
    on `grpc.aio`, and within a stream, they are refused with the time for a retry."""
    write_version(tmp_path / "repository" / "tiny" / "1")
    noise = np.random.default_rng(0).integers(0, 256, (1100, 1100), np.uint8)
    request = c.ClassifyRequest(model="tiny", images=[c.Image(encoded=png(noise))] * 8, top_k=1)
    flags = ["--max-message-mib", "16", "--max-pending-mib", "16", "--grpc-transport", transport]
    with serving(tmp_path / "log", tmp_path / "repository", *flags) as server:
        options = [("grpc.max_send_message_length", -1)]
        with grpc.insecure_channel(server.address, options=options) as channel:
            ask = channel.unary_unary(CLASSIFY)
            calls = [ask.future(request.SerializeToString(), timeout=HANG_S) for _ in range(6)]
            codes = {call.code() for call in calls}
            answer = c.ClassifyResponse.FromString(ask(request.SerializeToString(), timeout=HANG_S))
            requests = [c.ClassifyStreamRequest(id=str(number), request=request) for number in range(6)]
            stream = channel.stream_stream(f"{CLASSIFY}Stream")(
                (item.SerializeToString() for item in requests), timeout=HANG_S
            )
            streamed = [c.ClassifyStreamResponse.FromString(data) for data in stream]
    assert len(answer.results) == 8
    if transport == "core":
        assert codes == {grpc.StatusCode.OK}
        return
    assert codes == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
    refused = next(call for call in calls if call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert "max_pending_mib" in refused.details()
    assert dict(refused.trailing_metadata())["grpc-retry-pushback-ms"] == "100"
    assert len(streamed) == 6
    # On a busy machine the messages of one stream may come one after the other.
    told = {(answer.error.code, answer.error.retry_after_ms) for answer in streamed if answer.HasField("error")}
    assert told <= {(grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], 100)}
