"""Images that are not decoded, and images that cannot be: neither costs a run, and nothing of them is kept."""

import asyncio
import contextlib
import gc
import http.client
import struct
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cnnserve.errors import DeadlineExceeded, InvalidInput, QueueFull
from cnnserve.images.decoding_pool import DecodingPool
from cnnserve.images.preprocessing import RawImage
from cnnserve.model import loader
from cnnserve.model.version import Model
from cnnserve.process.admission import MemoryBudget
from cnnserve.repository import folders
from cnnserve_client import Client
from cnnserve_client.errors import InvalidInputError
from oip import Oip, encoded
from support import HANG_S, RunningServer, open_version, picture, png, serving, until, write_version

BROKEN = picture("left")[:40]
# More pixels than are read on the event loop.
LARGE = png(np.random.default_rng(0).integers(0, 256, (400, 400), np.uint8))
LARGE_BROKEN = LARGE[: len(LARGE) // 2]
IMAGES = [BROKEN, LARGE_BROKEN, b"", b"no image", RawImage(b"", 0, 8, 1), RawImage(bytes(3), 2, 2, 1)]
QUEUE = "dynamic_batching { max_queue_delay_microseconds: 60000000 default_queue_policy { max_queue_size: 8 } }"


@pytest.fixture
def memory() -> MemoryBudget:
    return MemoryBudget(64 * 2**20)


@pytest.fixture
async def model(tmp_path: Path, memory: MemoryBudget) -> AsyncIterator[Model]:
    """The tiny model, whose queue of eight images waits a minute for a full batch."""
    write_version(tmp_path / "m" / "1")
    (tmp_path / "m" / "config.pbtxt").write_text(QUEUE)
    opened = open_version(folders.find(tmp_path, "m"), 1, budget=memory)
    with DecodingPool(1) as decoders:
        model = loader.start(opened, decoders, print)
        yield model
        await asyncio.wait_for(model.close(), HANG_S)


@pytest.mark.parametrize("image", [picture("left"), LARGE, *IMAGES], ids=range(8))
async def test_nothing_is_decoded_after_the_deadline(model: Model, image: bytes | RawImage) -> None:
    """An image that cannot be read would be the request's own error; that it was not looked at shows in the error."""
    for images in ([image], [image] * 8):
        with pytest.raises(DeadlineExceeded):
            await model.classify(images, deadline_ns=time.monotonic_ns())
        with pytest.raises(DeadlineExceeded):
            await model.infer_images(images, deadline_ns=time.monotonic_ns())
    assert model.statistics.failures["REJECTED"] == 4
    assert model.statistics.executions == 0


async def test_the_deadline_is_looked_at_before_each_image(model: Model) -> None:
    """Each is found to be cut off only at its end. With the last one read, they would be errors of their own."""
    slow = png(np.random.default_rng(0).integers(0, 256, (2000, 2000), np.uint8))[:-100]
    with pytest.raises(DeadlineExceeded):
        await model.classify([slow] * 8, deadline_ns=time.monotonic_ns() + 30_000_000)
    assert model.statistics.failures["REJECTED"] == 1


async def test_nothing_is_decoded_if_the_queue_is_longer_than_the_deadline(model: Model) -> None:
    """A row is known to take an hour, and one waits."""
    model._batcher._limits.times.learn(1, 3600 * 10**9)
    waiting = asyncio.create_task(model.classify([picture("left")]))
    await until(lambda: model.waiting == 1)
    for infer in (model.classify, model.infer_images):
        for image in (LARGE_BROKEN, BROKEN):
            with pytest.raises(DeadlineExceeded, match="before the request's run ends"):
                await infer([image], deadline_ns=time.monotonic_ns() + 5400 * 10**9)
    assert "admitted=1" in repr(model)
    assert model.statistics.failures["REJECTED"] == 4
    waiting.cancel()


async def test_an_image_that_is_refused_for_its_size_takes_no_time(model: Model) -> None:
    """Before, the time that its pixels would take refused all images of the request: some ten thousand years."""
    # So that the time of a pixel is known.
    await model.classify([LARGE] * 8)
    claims = LARGE[:16] + struct.pack(">II", 2**31 - 1, 2**31 - 1) + LARGE[24:]
    elongated = LARGE[:16] + struct.pack(">II", 10**9, 1) + LARGE[24:]
    images = [claims, elongated, RawImage(b"", 2**30, 2**30, 1)]
    outcomes = (await model.classify(images, deadline_ns=time.monotonic_ns() + int(HANG_S * 1e9))).outcomes
    assert all(isinstance(outcome, InvalidInput) for outcome in outcomes)


@pytest.mark.parametrize("image", IMAGES, ids=range(6))
async def test_images_that_cannot_be_read_leave_no_memory_and_no_room_taken(
    model: Model, memory: MemoryBudget, image: bytes | RawImage
) -> None:
    for _ in range(3):
        outcomes = (await model.classify([image] * 8)).outcomes
        assert all(isinstance(outcome, InvalidInput) for outcome in outcomes)
        with pytest.raises(InvalidInput):
            await model.infer_images([image] * 8)
    assert (memory.held_bytes, memory.decoding_bytes) == (0, 0)
    assert "admitted=0" in repr(model)


async def test_while_the_others_wait_their_room_is_free(model: Model) -> None:
    """Of eight images seven cannot be read. The one that waits for a full batch takes one place of eight."""
    waiting = asyncio.create_task(model.classify([picture("left")] + [BROKEN] * 7))
    await until(lambda: model.waiting == 1)
    with pytest.raises(QueueFull):
        await model.classify([picture("left")] * 8)
    # These fill the queue, and with it the batch: all are answered.
    others = await asyncio.wait_for(model.classify([picture("bright")] * 7), HANG_S)
    assert len(others.outcomes) == 7
    outcomes = (await asyncio.wait_for(waiting, HANG_S)).outcomes
    assert not isinstance(outcomes[0], InvalidInput)
    assert all(isinstance(outcome, InvalidInput) for outcome in outcomes[1:])
    assert model.statistics.batches.keys() == {8}
    assert "admitted=0" in repr(model)


@pytest.mark.parametrize("image", [LARGE, RawImage(bytes(400 * 400), 400, 400, 1)], ids=["encoded", "raw"])
async def test_decoding_is_counted_while_it_lasts(model: Model, memory: MemoryBudget, image: bytes | RawImage) -> None:
    """A budget that is taken holds a decoding back; a small image is not counted, it is read at once."""
    with memory.hold(memory.limit_bytes), memory.decoding(1):
        waiting = asyncio.create_task(model.classify([image, *[picture("left")] * 7]))
        done, _ = await asyncio.wait([waiting], timeout=0.2)
        assert not done
        assert memory.decoding_bytes == 1
    assert len((await asyncio.wait_for(waiting, HANG_S)).outcomes) == 8
    assert (memory.held_bytes, memory.decoding_bytes) == (0, 0)


def held(server: RunningServer) -> dict[str, float]:
    text = httpx.get(f"http://127.0.0.1:{server.http_port}/metrics", timeout=HANG_S).text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    return {sample.labels["by"]: sample.value for sample in families["cnnserve_memory_held_bytes"].samples}


def test_a_server_gives_back_what_unreadable_images_held(tmp_path: Path) -> None:
    write_version(tmp_path / "r" / "tiny" / "1")
    flags = ("--max-message-mib", "8", "--max-pending-mib", "16")
    with serving(tmp_path / "log", tmp_path / "r", *flags) as server:
        with Client(server.address) as client, Oip(server.address) as oip:
            # Twice as much as the budget, were it not given back.
            for image in [LARGE_BROKEN + bytes(4 * 2**20), BROKEN] * 4:
                assert not client.classify([image], model="tiny").results[0].ok
                oip.fails("ModelInfer", encoded(image))
                with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.http_port)) as connection:
                    connection.request("POST", "/v1/models/tiny:classify", image)
                    assert connection.getresponse().status == 400
            with pytest.raises(InvalidInputError):
                client.classify([], model="tiny")
        assert held(server) == {"requests": 0, "decoding": 0}


@pytest.mark.parametrize("image", [image for image in IMAGES if isinstance(image, bytes)])
async def test_an_image_that_cannot_be_read_is_freed_without_the_garbage_collector(model: Model, image: bytes) -> None:
    own = bytes(bytearray(image))
    references = sys.getrefcount(own)
    gc.disable()
    try:
        await model.classify([own] * 2)
        with pytest.raises(InvalidInput):
            await model.infer_images([own])
        # A decoding thread lets go a moment after the event loop has its result.
        await until(lambda: sys.getrefcount(own) == references)
    finally:
        gc.enable()
