"""`classify_many` of both clients, against a real gRPC server that follows a script."""

import asyncio
import itertools
import threading
import time
from contextlib import ExitStack, aclosing
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import PIL.Image
import pytest

import cnnserve_client as cc
from cnnserve.wire import classifier_pb2 as pb
from cnnserve_client import aio_streams, calls, limits
from cnnserve_client.batching import Limits
from cnnserve_client.pipeline import Pipeline
from peer import Peer, Refused, running
from support import HANG_S, until


def numbered(request, context) -> pb.ClassifyResponse:
    """The class of an image is the number that it is."""
    answer = pb.ClassifyResponse(model=request.model, version="1")
    for image in request.images:
        answer.results.add().classes.add(index=int(image.encoded), probability=1)
    return answer


def numbers(count: int):
    return (b"%d" % number for number in range(count))


def indices(results) -> list[int]:
    return [result.top.index for result in results]


def test_results_come_in_order_in_requests_of_the_models_batch(peer, many):
    peer.scripts["Classify"] = numbered
    assert indices(many(peer.address, numbers(100), top_k=2)) == list(range(100))
    asked = peer.of("Classify")
    assert [len(request.images) for request in asked] == [3] * 33 + [1]
    assert {(request.model, request.top_k) for request in asked} == {("digits", 2)}


@pytest.mark.parametrize(
    ("classes", "top_k", "images"),
    [(1000, 0, 128), (1000, 1000, 100), (30_000, 2**32 - 1, 3), (10**6, 10**6, 1), (10**6, 0, 128), (0, 7, 128)],
)
def test_a_request_asks_for_no_more_classes_than_a_server_answers(classes, top_k, images):
    version = cc.VersionInfo("1", "READY", class_count=classes, max_batch_size=128)
    model = cc.ModelInfo("digits", (version,))
    assert limits.of(model, "", 2**26, top_k).images == images


def test_every_kind_of_image_and_every_failure(peer, many, tmp_path):
    (tmp_path / "a.png").write_bytes(b"file")
    images = [b"x", tmp_path / "a.png", "gone.png", b"bad", np.zeros((2, 2), np.uint8), 7]
    results = many(peer.address, images)
    assert [result.ok for result in results] == [True, True, False, False, True, False]
    assert "images[2]: cannot read 'gone.png'" in str(results[2].error)
    assert (str(results[3].error), results[3].version) == ("cannot decode the image", "1")
    assert results[0].version == "1"


def test_nothing_in_nothing_out(peer, many):
    assert many(peer.address, []) == []


def test_large_images_are_split_by_bytes(peer, many):
    version = pb.ModelVersion(version="1", state=pb.MODEL_STATE_READY, max_batch_size=64)
    model = pb.Model(name="digits", versions=[version])
    peer.scripts["GetModel"] = lambda request, context: pb.GetModelResponse(model=model, max_message_bytes=2**26)
    images = [bytes(3 * 2**20)] * 10 + [bytes(10 * 2**20)]
    assert all(result.ok for result in many(peer.address, images))
    assert max(request.ByteSize() for request in peer.of("Classify")) < 11 * 2**20


def test_a_source_is_read_no_further_than_needed(peer):
    read = itertools.count()
    with cc.Client(peer.address) as client:
        results = client.classify_many((b"%d" % next(read) for _ in itertools.count()), model="digits")
        for _ in range(1000):
            assert next(results).ok
        results.close()
        assert next(read) <= 1000 + 128 + 3


async def test_an_async_source_without_end_is_read_no_further_than_needed(peer):
    read = itertools.count()

    async def images():
        while True:
            await asyncio.sleep(0)
            yield b"%d" % next(read)

    async with cc.AsyncClient(peer.address) as client:
        async with aclosing(client.classify_many(images(), model="digits")) as results:
            async for _ in results:
                if next(read) > 1000:
                    break
        assert next(read) <= 1000 + 2 * 128 + 3


def closed(peer: Peer) -> threading.Event:
    """Set when a stream's call is over on the server."""
    gone = threading.Event()
    answer = peer.stream

    def stream(requests, context):
        context.add_callback(gone.set)
        yield from answer(requests, context)

    peer.stream = stream
    return gone


def test_leaving_early_cancels_the_stream_and_its_threads(peer):
    gone = closed(peer)
    with cc.Client(peer.address) as client:
        for _ in client.classify_many(itertools.repeat(b"x"), model="digits"):
            break
        assert gone.wait(HANG_S)
        assert client.classify(b"x", model="digits").results[0].ok
    # The thread that took answers ends with its call.
    for thread in threading.enumerate():
        if thread.name == "cnnserve-responses":
            thread.join(HANG_S)
            assert not thread.is_alive()


async def test_leaving_early_cancels_the_async_stream(peer):
    gone = closed(peer)
    async with cc.AsyncClient(peer.address) as client:
        async with aclosing(client.classify_many(itertools.repeat(b"x"), model="digits")) as results:
            await anext(results)
        assert await asyncio.to_thread(gone.wait, HANG_S)
        assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_cancelled_consumer_cancels_the_stream(peer):
    gone = closed(peer)
    peer.hang("Classify")
    async with cc.AsyncClient(peer.address) as client:
        task = asyncio.create_task(anext(client.classify_many([b"x"], model="digits")))
        await until(lambda: peer.of("Classify"))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(gone.wait, HANG_S)


async def test_results_do_not_wait_for_an_async_source(peer):
    peer.scripts["Classify"] = numbered
    taken = asyncio.Semaphore(1)

    async def images():
        for number in range(5):
            await taken.acquire()  # the next frame depends on the last one's class
            yield b"%d" % number

    found = []
    async with cc.AsyncClient(peer.address) as client:
        async for result in client.classify_many(images(), model="digits"):
            found.append(result.top.index)
            taken.release()
    assert found == list(range(5))


async def test_leaving_early_ends_an_async_source_that_is_waited_for(peer):
    async def images():
        yield b"x"
        await asyncio.Event().wait()

    async with cc.AsyncClient(peer.address) as client:
        async with aclosing(client.classify_many(images(), model="digits")) as results:
            assert (await anext(results)).ok
        # grpc takes a moment to hear of its call's end.
        if others := asyncio.all_tasks() - {asyncio.current_task()}:
            _, pending = await asyncio.wait(others, timeout=HANG_S)
            assert not pending


class OneAnswer:
    """A call whose answer comes when the test says so."""

    def __init__(self) -> None:
        self.asked, self.answer = asyncio.Event(), asyncio.Event()

    def open(self, lane, requests):
        self.asked.set()
        return self

    async def __aiter__(self):
        await self.answer.wait()
        yield pb.ClassifyStreamResponse(id="nobody asked").SerializeToString()

    def cancel(self) -> None:
        self.answer.set()


@pytest.mark.parametrize("turns", range(6))
async def test_a_cancellation_that_comes_with_an_answer_is_not_lost(turns):
    call = OneAnswer()
    request = calls.empty_request(model="digits", version="", top_k=0)
    pipeline = Pipeline(request, Limits(1, 2**20), ["a:1"], 30.0)
    task = asyncio.create_task(anext(aio_streams.run(pipeline, [b"x"], call.open, None)))
    await call.asked.wait()
    await asyncio.sleep(0)
    call.answer.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    was_waiting = task.cancel()
    await asyncio.wait({task}, timeout=HANG_S)
    assert task.cancelled() is was_waiting


def test_an_exception_of_the_source_comes_after_the_results_before_it(peer):
    def images():
        yield b"1"
        yield b"2"
        raise OSError("the camera is gone")

    with cc.Client(peer.address) as client:
        results = client.classify_many(images(), model="digits")
        assert [next(results).ok, next(results).ok] == [True, True]
        with pytest.raises(OSError, match="the camera is gone"):
            next(results)


def test_a_full_queue_is_asked_again(peer, many):
    refusals = iter([Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", 5)] * 3)

    def script(request, context):
        for refused in refusals:
            raise refused
        return numbered(request, context)

    peer.scripts["Classify"] = script
    assert indices(many(peer.address, numbers(9))) == list(range(9))
    assert len(peer.of("Classify")) == 6


def test_a_refused_request_fails_its_images_only(peer, many):
    def script(request, context):
        if b"4" in [image.encoded for image in request.images]:
            raise Refused(grpc.StatusCode.NOT_FOUND, "unloaded")
        return numbered(request, context)

    peer.scripts["Classify"] = script
    results = many(peer.address, numbers(9))
    assert [result.ok for result in results] == [True] * 3 + [False] * 3 + [True] * 3
    assert {type(result.error) for result in results[3:6]} == {cc.NotFoundError}


@pytest.mark.parametrize("code", ["UNAUTHENTICATED", "INTERNAL", "UNIMPLEMENTED"])
def test_a_stream_that_is_refused_says_why(peer, many, code):
    def stream(requests, context):
        context.abort(grpc.StatusCode[code], "not you")
        yield

    peer.stream = stream
    with pytest.raises(cc.CnnserveError, match="not you") as caught:
        many(peer.address, [b"x"])
    assert caught.value.code == code


def test_an_unknown_model_says_so_before_anything_is_read(peer, many):
    peer.refuse("GetModel", grpc.StatusCode.NOT_FOUND, "no model 'digits'")
    read = itertools.count()
    with pytest.raises(cc.NotFoundError, match="no model 'digits'"):
        many(peer.address, (next(read) for _ in range(3)))
    assert next(read) == 0


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"top_k": -1}, "top_k is -1"),
        ({"top_k": 2.0}, r"top_k is 2\.0"),
        ({"timeout_s": 0}, "timeout_s is 0"),
        ({"timeout_s": "5"}, "timeout_s is '5'"),
        ({"model": "\udcff"}, "model is"),
        ({"model": 7}, "model is 7"),
        ({"version": 1}, "version is 1"),
    ],
)
def test_wrong_parameters_are_told_at_the_call(wrong, expected):
    with cc.Client("127.0.0.1:1") as client, pytest.raises(cc.InvalidInputError, match=expected):
        client.classify_many([b"x"], **{"model": "digits", **wrong})


@pytest.mark.parametrize(
    "image",
    [
        "a.jpg",
        Path("a.jpg"),
        b"jpeg",
        bytearray(b"jpeg"),
        PIL.Image.new("L", (2, 2)),
        *map(np.zeros, [(2, 2), (2, 2, 3)]),
    ],
    ids=lambda image: type(image).__name__,
)
def test_one_image_is_not_taken_for_many(many, image):
    expected = f"images is a single image of type {type(image).__name__}: expected an iterable of images; use classify"
    with pytest.raises(cc.InvalidInputError, match=expected):
        many("127.0.0.1:1", image)


@pytest.mark.parametrize("images", [None, 5, object])
def test_what_is_no_iterable_is_told_at_the_call(many, images):
    with pytest.raises(cc.InvalidInputError, match=f"images is {images!r}: expected an iterable of images"):
        many("127.0.0.1:1", images)


def test_an_asynchronous_source_belongs_to_the_other_client():
    async def frames():
        yield b"x"

    with cc.Client("127.0.0.1:1") as client, pytest.raises(cc.InvalidInputError, match="only AsyncClient accepts"):
        client.classify_many(frames(), model="digits")


def test_items_by_number_are_many(peer, many):
    class Dataset:
        def __getitem__(self, index: int) -> bytes:
            return [b"x", b"bad"][index]

    assert [result.ok for result in many(peer.address, Dataset())] == [True, False]


def test_an_array_of_images_is_many(peer, many):
    assert len(many(peer.address, np.zeros((4, 2, 2, 3), np.uint8))) == 4


def test_a_version_label_finds_its_version(peer, many):
    versions = [
        pb.ModelVersion(version="2", state=pb.MODEL_STATE_READY, max_batch_size=2, version_labels=["stable"]),
        pb.ModelVersion(version="3", state=pb.MODEL_STATE_READY, max_batch_size=5),
    ]
    model = pb.Model(name="digits", versions=versions)
    peer.scripts["GetModel"] = lambda request, context: pb.GetModelResponse(model=model, max_message_bytes=2**26)
    many(peer.address, numbers(5), version="stable")
    assert [len(request.images) for request in peer.of("Classify")] == [2, 2, 1]
    assert {request.version for request in peer.of("Classify")} == {"stable"}
    with pytest.raises(cc.NotFoundError, match="no version canary: use one of 2, stable, 3"):
        many(peer.address, numbers(5), version="canary")


def test_a_server_that_restarts_costs_no_image_and_doubles_none(many):
    first, second = Peer(), Peer()
    answered = threading.Event()

    def dies(requests, context):
        for number, answer in enumerate(Peer.stream(first, requests, context)):
            yield answer
            if number == 5:
                answered.set()
                context.abort(grpc.StatusCode.UNAVAILABLE, "shutting down")

    first.stream = dies
    first.scripts["Classify"] = second.scripts["Classify"] = numbered
    stack = ExitStack()

    def images():
        for image in numbers(3000):
            if answered.is_set() and not second.address:
                stack.close()
                port = int(first.address.rpartition(":")[2])
                started = running(second, port)
                second_stack.enter_context(started)
            yield image

    with ExitStack() as second_stack:
        stack.enter_context(running(first))
        assert indices(many(first.address, images())) == list(range(3000))
        assert second.of("Classify")


def test_several_addresses_share_the_work_and_a_dead_one_costs_nothing(many):
    with running(Peer()) as one, running(Peer()) as other:
        one.scripts["Classify"] = other.scripts["Classify"] = numbered
        address = f"{one.address}, 127.0.0.1:1,{other.address}"
        assert indices(many(address, numbers(3000))) == list(range(3000))
        assert one.of("Classify")
        assert other.of("Classify")


@pytest.mark.parametrize("hangs", [0, 1])
def test_a_server_that_falls_silent_costs_no_image_where_another_answers(many, hangs):
    peers = [Peer(), Peer()]
    for peer in peers:
        peer.scripts["Classify"] = numbered
    falls_silent(peers[hangs], after=5)
    with running(peers[0]), running(peers[1]):
        address = f"{peers[0].address},{peers[1].address}"
        assert indices(many(address, numbers(600), timeout_s=4)) == list(range(600))
        assert len(peers[hangs].of("Classify")) > 5


def test_a_server_that_falls_silent_for_good_ends_the_run(peer):
    """What it had in hand fails, then the run does: the rest of the images waits for nobody."""
    falls_silent(peer, after=2)
    results = []
    with cc.Client(peer.address) as client:
        running_on = client.classify_many(itertools.repeat(b"1"), model="digits", timeout_s=2)
        with pytest.raises(TimeoutError, match=f"no response from {peer.address} within 2 s"):
            results.extend(running_on)
    assert [result.ok for result in results[:6]] == [True] * 6
    assert 6 < len(results) < 200
    assert {type(result.error) for result in results[6:]} == {cc.DeadlineExceededError}


def falls_silent(peer: Peer, after: int) -> None:
    """After so many requests the process hangs, so to say."""
    script = peer.scripts["Classify"]

    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        while len(peer.of("Classify")) > after and context.is_active():
            time.sleep(0.01)
        return script(request, context)

    peer.scripts["Classify"] = answer


def test_no_server_ends_with_the_reason(many):
    with pytest.raises(cc.ConnectionFailedError, match=r"cannot reach a server at 127\.0\.0\.1:1"):
        many("127.0.0.1:1", [b"x"], limits={"retries": 0})


def test_a_server_that_went_for_good_ends_the_run(many):
    peer = Peer()
    stack = ExitStack()
    stack.enter_context(running(peer))
    gone = threading.Event()

    def images():
        for image in itertools.cycle([b"1"]):
            if len(peer.of("Classify")) > 3 and not gone.is_set():
                gone.set()
                stack.close()
            yield image

    with pytest.raises(cc.UnavailableError):
        many(peer.address, images(), timeout_s=3)


def test_a_client_closed_meanwhile_says_so(peer):
    client = cc.Client(peer.address)
    results = client.classify_many(itertools.repeat(b"x"), model="digits")
    next(results)
    client.close()
    with pytest.raises(RuntimeError, match="this Client is closed"):
        list(results)


def test_threads_share_a_client(peer):
    peer.scripts["Classify"] = numbered
    found = {}
    with cc.Client(peer.address, connections=2) as client:

        def work(number: int) -> None:
            found[number] = indices(client.classify_many(numbers(200), model="digits"))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == {0: list(range(200)), 1: list(range(200))}
