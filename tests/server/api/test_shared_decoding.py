"""What one client sends to be decoded does not make another client wait. Orders are compared, not times."""

import io
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from PIL import Image

from cnnserve.wire import classifier_pb2 as c
from support import CLASSES, HANG_S, RunningServer, picture, png, serving, wait_until, write_version

CLASSIFY = "/cnnserve.v1.Classifier/Classify"
LARGE, LARGE_IMAGES = (2000, 1500), 24


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("shared-decoding")
    write_version(folder / "models" / "tiny" / "1", max_batch_size=32)
    with serving(folder / "log", folder / "models", "--decode-threads", "1") as server:
        yield server


def photograph(size: tuple[int, int] = LARGE) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (size[1] // 4, size[0] // 4, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize(size).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def request(images: list[bytes]) -> c.ClassifyRequest:
    return c.ClassifyRequest(model="tiny", images=[c.Image(encoded=image) for image in images], top_k=1)


def classify(channel: grpc.Channel, images: list[bytes], timeout: float = HANG_S) -> c.ClassifyResponse:
    rpc = channel.unary_unary(CLASSIFY, c.ClassifyRequest.SerializeToString, c.ClassifyResponse.FromString)
    answer: c.ClassifyResponse = rpc(request(images), timeout=timeout)
    return answer


def channel(server: RunningServer) -> grpc.Channel:
    """A connection of its own."""
    return grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)])


class Busy:
    """A client whose request of many photographs is being decoded."""

    def __init__(self, server: RunningServer, images: list[bytes]) -> None:
        self._server = server
        self._channel = channel(server)
        rpc = self._channel.unary_unary(CLASSIFY, c.ClassifyRequest.SerializeToString, c.ClassifyResponse.FromString)
        self.future: Any = rpc.future(request(images), timeout=HANG_S)
        wait_until(self._decoding, lambda: "photographs that are being decoded")

    def _decoding(self) -> bool:
        text = httpx.get(f"http://127.0.0.1:{self._server.http_port}/metrics").text
        held = next(line for line in text.splitlines() if line.startswith('cnnserve_memory_held_bytes{by="decoding"}'))
        return float(held.split()[1]) > 0

    def __enter__(self) -> "Busy":
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()


def post(server: RunningServer, images: list[bytes], **headers: str) -> httpx.Response:
    url = f"http://127.0.0.1:{server.http_port}/v1/models/tiny:classify"
    files = [("image", image) for image in images]
    return httpx.post(url, files=files, headers=headers, timeout=HANG_S)


def small_over_grpc(server: RunningServer) -> str:
    with channel(server) as own:
        return classify(own, [photograph((300, 200)), picture("left")]).results[1].classes[0].label


def small_over_http(server: RunningServer) -> str:
    results = post(server, [photograph((300, 200)), picture("left")]).json()["results"]
    return str(results[1]["classes"][0]["label"])


@pytest.mark.parametrize("small", [small_over_grpc, small_over_http])
def test_small_images_are_answered_before_the_photographs_of_another_client(
    server: RunningServer, small: Callable[[RunningServer], str]
) -> None:
    with Busy(server, [photograph()] * LARGE_IMAGES) as busy:
        for _ in range(3):
            assert small(server) == "left"
        assert not busy.future.done()
        assert len(busy.future.result().results) == LARGE_IMAGES


def test_two_clients_with_photographs_end_together(server: RunningServer) -> None:
    """Without turns, the second request would begin when the first one has ended."""
    with Busy(server, [photograph()] * LARGE_IMAGES) as first, channel(server) as own:
        answer = classify(own, [photograph()] * (LARGE_IMAGES // 4))
        assert len(answer.results) == LARGE_IMAGES // 4
        assert not first.future.done()
        assert {result.classes[0].label for result in first.future.result().results} <= set(CLASSES)


def test_a_deadline_that_cannot_be_met_is_refused_before_decoding(server: RunningServer) -> None:
    """The images are small files that take seconds to decode, which the server has learned from the first one."""
    flat = png(np.zeros((3000, 3000, 3), np.uint8))
    assert post(server, [flat]).status_code == 200
    answer = post(server, [flat] * 32, **{"Grpc-Timeout": "400m"})
    assert answer.status_code == 504
    assert "the deadline cannot be met" in answer.json()["error"]
    # A request that has the time is not refused.
    assert post(server, [flat], **{"Grpc-Timeout": "60S"}).status_code == 200
