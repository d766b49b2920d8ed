"""Whatever happens to streams, each image has one result, in order, and only the window is in memory."""

from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnserve.wire import classifier_pb2 as pb
from cnnserve_client import (
    DeadlineExceededError,
    ImageResult,
    InternalError,
    InvalidInputError,
    PermissionDeniedError,
    QueueFullError,
    UnavailableError,
)
from cnnserve_client.batching import Limits
from cnnserve_client.pipeline import Abandon, Deliver, Pipeline, Send, Step, Wait

NAME = "model"
TEMPLATE = pb.ClassifyRequest(model=NAME, top_k=3)
TIMEOUT_S = 30.0


def pipeline(limits: Limits | None = None, lanes: int = 1, *, proved: bool = True) -> Pipeline:
    """Returns a pipeline. `proved`: as after a first response from each connection."""
    made = Pipeline(
        TEMPLATE, limits or Limits(4, 2**20, len(NAME)), [f"server-{number}:1" for number in range(lanes)], TIMEOUT_S
    )
    for lane in made._lanes:
        lane.has_responded = proved
    return made


def answer(data: bytes) -> bytes:
    """Returns a response in which the class of each image is its length."""
    request = pb.ClassifyStreamRequest.FromString(data)
    response = pb.ClassifyStreamResponse(id=request.id)
    response.response.version = "1"
    for image in request.request.images:
        response.response.results.add().classes.add(index=len(image.encoded), probability=1)
    return response.SerializeToString()


def refusal(data: bytes, code: int, retry_after_ms: int | None = None) -> bytes:
    number = pb.ClassifyStreamRequest.FromString(data).id
    error = pb.Error(code=code, message="no", retry_after_ms=retry_after_ms)
    return pb.ClassifyStreamResponse(id=number, error=error).SerializeToString()


@dataclass
class Run:
    """A consumer, a source and servers, whose steps the test decides."""

    pipeline: Pipeline
    images: list[bytes]
    error: Exception | None = None
    now: float = 1000.0
    read: int = 0
    results: list[ImageResult] = field(default_factory=list)
    sent: list[tuple[int, bytes]] = field(default_factory=list)
    abandoned: list[int] = field(default_factory=list)
    waited: float = 0.0
    is_done: bool = False

    def until_wait(self) -> None:
        """Does what the pipeline asks for until it has to wait."""
        while True:
            match self.pipeline.next_step(self.now):
                case Step.READ:
                    if self.read == len(self.images):
                        self.pipeline.exhausted(self.error)
                        continue
                    self.read += 1
                    self.pipeline.add(self.images[self.read - 1], self.now)
                case Deliver(results):
                    self.results += results
                case Send(lane, data):
                    self.sent.append((lane, data))
                case Abandon(lane):
                    self.abandoned.append(lane)
                case Wait(seconds):
                    self.waited = seconds
                    return
                case Step.DONE:
                    self.is_done = True
                    return

    def reply(self, position: int = 0) -> None:
        lane, data = self.sent.pop(position)
        self.pipeline.answered(lane, answer(data), self.now)

    def finish(self) -> list[int]:
        self.until_wait()
        while not self.is_done:
            if self.sent:
                self.reply()
            else:
                self.now += self.waited
            self.until_wait()
        return [result.top.index for result in self.results]


@settings(max_examples=200)
@given(
    st.lists(st.integers(0, 400), max_size=60),
    st.builds(Limits, st.integers(1, 8), st.integers(200, 3000), st.just(len(NAME))),
    st.integers(1, 3),
    st.data(),
)
def test_every_image_once_in_order_whatever_breaks(sizes, limits, lanes, data):
    sizes = [min(size, limits.largest_image) for size in sizes]
    run = Run(pipeline(limits, lanes, proved=data.draw(st.booleans())), [bytes(size) for size in sizes])
    run.until_wait()
    for _ in range(40):
        if run.is_done:
            break
        assert all(len(message) <= limits.message_bytes for _, message in run.sent)
        event = data.draw(st.sampled_from(["reply", "reply", "break", "unavailable", "full", "time"]))
        if event == "time" or not run.sent:
            run.now += min(run.waited, 0.3)  # No request comes close to its deadline.
        elif event == "break":
            lane = data.draw(st.sampled_from(sorted({lane for lane, _ in run.sent})))
            run.sent = [(other, message) for other, message in run.sent if other != lane]
            run.pipeline.broke(lane, UnavailableError("gone"), run.now)
            run.now += 0.1
        elif event in ("unavailable", "full"):
            lane, message = run.sent.pop(0)
            code, after = (14, None) if event == "unavailable" else (8, 50)
            run.pipeline.answered(lane, refusal(message, code, after), run.now)
        else:
            run.reply(data.draw(st.integers(0, len(run.sent) - 1)))
        run.until_wait()
        assert [result.top.index for result in run.results] == sizes[: len(run.results)]
    assert run.finish() == sizes


@given(st.lists(st.integers(0, 400), max_size=40), st.builds(Limits, st.integers(1, 8), st.integers(250, 3000)))
def test_requests_fit_and_none_is_cut_short(sizes, limits):
    images = [bytes(min(size, limits.largest_image)) for size in sizes]
    run = Run(pipeline(limits), images)
    groups = []
    run.until_wait()
    while not run.is_done:
        groups += [pb.ClassifyStreamRequest.FromString(data) for _, data in run.sent]
        while run.sent:
            run.reply()
        run.until_wait()
    assert [image.encoded for group in groups for image in group.request.images] == images
    for group, following in pairwise(groups):
        assert 1 <= len(group.request.images) <= limits.images
        group.request.images.add().CopyFrom(following.request.images[0])
        slack = 130 + 40 * limits.images  # The bytes that the client reserves for tags and lengths.
        assert len(group.request.images) > limits.images or group.ByteSize() + slack > limits.message_bytes


def test_the_overhead_suffices_for_the_largest_lengths():
    largest = Limits(1, 2**31 - 1, len(NAME)).largest_image
    raw = pb.Image(raw=pb.RawImage(data=b"", height=2**32 - 1, width=2**32 - 1, channels=4))
    around = pb.ClassifyStreamRequest(id=str(2**63), timeout_us=2**63, request=TEMPLATE)
    lengths = 3 * 5 + 3  # Varints and tags of a data field, an image and a request of almost 2 GiB.
    assert 2**31 - 1 - largest >= around.ByteSize() + raw.ByteSize() + lengths


def test_a_source_without_end_is_read_as_far_as_the_window():
    run = Run(pipeline(), [b"x"] * 100_000)
    run.until_wait()
    assert run.read == 128
    run.reply(5)
    run.until_wait()
    assert (run.read, run.results) == (128, [])  # The first image has no response, so no result is returned.
    run.reply()
    run.until_wait()
    assert run.read == 132


def test_a_new_stream_gets_one_request_until_it_answers():
    run = Run(pipeline(lanes=2, proved=False), [b"a"] * 100)
    run.until_wait()
    assert [lane for lane, _ in run.sent] == [0, 1]
    run.reply()
    run.until_wait()
    assert len(run.sent) == 25 - 1
    run.pipeline.broke(0, UnavailableError("gone"), run.now)
    run.sent = [(lane, data) for lane, data in run.sent if lane]
    run.now += 10
    run.until_wait()
    assert [lane for lane, _ in run.sent].count(0) == 1


def test_large_images_make_the_window_small():
    limits = Limits(32, 2**26, len(NAME))
    run = Run(pipeline(limits), [bytes(2**23)] * 100)
    run.until_wait()
    assert run.read == 5  # 32 MiB, and the image that did not fit.
    assert len(run.sent) == 4


def test_an_image_that_cannot_be_read_fails_alone():
    run = Run(pipeline(), [b"a", "gone.png", b"ccc", 7, ImageResult(error=InvalidInputError("mine"))])
    run.until_wait()
    while run.sent:
        run.reply()
        run.until_wait()
    texts = [str(result.error or result.top.index) for result in run.results]
    assert texts[0::2] == ["1", "3", "mine"]
    assert "images[1]: cannot read 'gone.png'" in texts[1]
    assert "images[3] has type int" in texts[3]


def test_failures_alone_are_handed_out_and_never_sent():
    run = Run(pipeline(), ["gone.png"] * 50)
    run.until_wait()
    assert run.is_done
    assert len(run.results) == 50
    assert not run.sent


def test_an_image_larger_than_a_message_fails_alone():
    run = Run(pipeline(Limits(4, 1000, len(NAME))), [b"a", bytes(1000), b"ccc"])
    run.until_wait()
    run.reply()
    run.until_wait()
    assert [result.ok for result in run.results] == [True, False, True]
    assert "larger than the 867 bytes" in str(run.results[1].error)


def test_a_slow_source_is_not_waited_for():
    machine = pipeline()
    machine.next_step(0.0)
    machine.add(b"a", 0.0)
    assert machine.next_step(0.01) is Step.READ
    machine.add(b"bb", 1.0)
    assert isinstance(machine.next_step(1.0), Send)
    # While requests are in flight, the client fills the next request.
    assert machine.next_step(1.0) is Step.READ
    machine.add(b"ccc", 1.0)
    assert machine.next_step(9.0) is Step.READ


def test_a_full_queue_is_asked_again_after_the_time_it_named():
    run = Run(pipeline(), [b"a"])
    run.until_wait()
    lane, data = run.sent.pop()
    run.pipeline.answered(lane, refusal(data, 8, 700), run.now)
    run.until_wait()
    assert not run.sent
    assert run.waited == pytest.approx(0.7, abs=0.01)
    run.now += run.waited
    run.until_wait()
    assert run.sent == [(lane, data)]


@pytest.mark.parametrize(("code", "kind"), [(8, "RESOURCE_EXHAUSTED"), (3, "INVALID_ARGUMENT"), (5, "NOT_FOUND")])
def test_a_refused_request_fails_its_images_only(code, kind):
    run = Run(pipeline(), [b"a"] * 8)
    run.until_wait()
    lane, data = run.sent.pop(0)
    run.pipeline.answered(lane, refusal(data, code), run.now)
    run.reply()
    run.until_wait()
    assert run.is_done
    assert [result.error and result.error.code for result in run.results] == [kind] * 4 + [None] * 4


def test_putting_off_ends_with_the_requests_time():
    run = Run(pipeline(), [b"a"])
    run.until_wait()
    while not run.is_done:
        for lane, data in run.sent:
            run.pipeline.answered(lane, refusal(data, 14), run.now)
        run.sent.clear()
        run.until_wait()
        run.now += 0 if run.is_done else run.waited
    assert run.results[0].error.code == "UNAVAILABLE"
    assert 1000 + TIMEOUT_S - 6 < run.now < 1000 + TIMEOUT_S + 6


def test_a_server_that_is_not_ready_leaves_its_requests_to_the_others():
    run = Run(pipeline(lanes=2), [b"a"] * 40)
    run.until_wait()
    while run.sent:
        lane, data = run.sent.pop(0)
        reply = refusal(data, 14) if lane == 0 else answer(data)
        run.pipeline.answered(lane, reply, run.now)
        run.until_wait()
        if not run.sent and not run.is_done:
            run.now += run.waited
            run.until_wait()
    assert [result.ok for result in run.results] == [True] * 40


@pytest.mark.parametrize(("lanes", "tries"), [(1, 16), (2, 8)])
def test_a_dead_connection_is_tried_less_often_where_another_answers(lanes, tries):
    run = Run(pipeline(Limits(1, 2**20, len(NAME)), lanes), [b"a"] * 10_000)
    found = 0
    run.until_wait()
    while run.now < 1000 + TIMEOUT_S - 6:
        dead = [data for lane, data in run.sent if lane == 0]
        run.sent = [(lane, data) for lane, data in run.sent if lane]
        if dead:
            found += 1
            run.pipeline.broke(0, UnavailableError("gone"), run.now)
        if run.sent:
            run.reply()
        run.now += 0.05
        run.until_wait()
    assert found <= tries
    assert (len(run.results) > 100) is (lanes == 2)


def test_servers_that_stay_away_end_the_run_with_the_reason():
    run = Run(pipeline(), [b"a"])
    run.until_wait()

    def stay_away():
        while True:
            if run.sent:
                run.sent.clear()
                run.pipeline.broke(0, UnavailableError("gone"), run.now)
            run.until_wait()
            run.now += run.waited

    with pytest.raises(UnavailableError, match="gone"):
        stay_away()
    assert 1000 + TIMEOUT_S <= run.now < 1000 + TIMEOUT_S + 6


def test_an_error_that_another_try_would_repeat_ends_the_run():
    run = Run(pipeline(), [b"a"] * 12)
    run.until_wait()
    run.reply()
    run.pipeline.broke(0, PermissionDeniedError("no"), run.now)
    with pytest.raises(PermissionDeniedError):
        run.until_wait()
    assert len(run.results) == 4


def test_a_silent_server_fails_its_requests_when_their_time_is_over():
    run = Run(pipeline(), [b"a"] * 4)
    run.until_wait()
    assert TIMEOUT_S < run.waited < TIMEOUT_S + 2
    run.now += run.waited
    run.until_wait()
    assert run.abandoned == [0]
    assert {type(result.error) for result in run.results} == {DeadlineExceededError}


def test_a_server_that_stays_silent_ends_the_run():
    run = Run(pipeline(), [b"a"] * 4000)

    def stay_silent():
        run.until_wait()
        while True:
            run.now += run.waited
            run.until_wait()

    with pytest.raises(DeadlineExceededError, match="no response from server-0:1 within 30 s"):
        stay_silent()
    assert 1000 + 2 * TIMEOUT_S < run.now < 1000 + 2 * TIMEOUT_S + 6
    # These images were in flight; the others were never sent.
    assert 0 < len(run.results) <= 128
    assert {type(result.error) for result in run.results} == {DeadlineExceededError}


def test_a_server_that_was_silent_for_once_costs_what_was_under_way():
    run = Run(pipeline(), [b"a"] * 400)
    run.until_wait()
    run.sent.clear()
    run.now += run.waited
    run.until_wait()
    assert run.abandoned == [0]
    lost = len(run.results)
    while not run.is_done:
        if run.sent:
            run.reply()
        else:
            run.now += run.waited
        run.until_wait()
    assert [result.ok for result in run.results] == [False] * lost + [True] * (400 - lost)
    assert lost <= 128


def silent_lane(run: Run, lane: int, seconds: float, step: float = 0.05, *, took: float = 0.0) -> None:
    """One connection is silent; the others respond to requests that they received at least `took` seconds ago."""
    until = run.now + seconds
    sent: list[tuple[float, int, bytes]] = []
    run.until_wait()
    while run.now < until and not run.is_done:
        sent += [(run.now, number, data) for number, data in run.sent if number != lane]
        run.sent.clear()
        while sent and sent[0][0] + took <= run.now:
            run.pipeline.answered(sent[0][1], answer(sent.pop(0)[2]), run.now)
        run.until_wait()
        run.now += step
        run.until_wait()


def test_a_silent_connection_leaves_its_requests_to_the_others():
    run = Run(pipeline(lanes=2), [b"a"] * 5000)
    started = run.now
    silent_lane(run, 0, 10 * TIMEOUT_S)
    assert run.is_done
    assert [result.ok for result in run.results] == [True] * 5000
    # Each time the silent connection is tried, all others wait for it for half of a request's timeout.
    assert run.now - started < 1.5 * TIMEOUT_S
    assert run.abandoned[0] == 0


def test_a_silent_connection_is_tried_ever_less_often():
    run = Run(pipeline(Limits(1, 2**20, len(NAME)), lanes=2), [b"a"] * 10**6)
    silent_lane(run, 0, 20 * TIMEOUT_S, step=0.5)
    # After 1, 2, 4 and 8 times the timeout of a request.
    assert 3 <= len(run.abandoned) <= 5
    assert {result.ok for result in run.results} == {True}


def test_slow_answers_are_no_silence():
    """Each response takes more than half of the request's timeout."""
    run = Run(pipeline(lanes=3), [b"a"] * 300)
    silent_lane(run, -1, 1000, step=0.5, took=0.7 * TIMEOUT_S)
    assert run.is_done
    assert run.abandoned == []


def test_a_consumer_that_takes_its_time_is_no_silent_server():
    run = Run(pipeline(), [b"a"] * 4)
    run.until_wait()
    run.now += 10 * TIMEOUT_S
    run.until_wait()
    assert not run.abandoned
    run.reply()
    run.until_wait()
    assert len(run.results) == 4


def test_an_exception_of_the_source_comes_after_the_results_before_it():
    run = Run(pipeline(), [b"a"] * 5, KeyError("mine"))
    run.until_wait()
    run.reply()
    run.reply()
    with pytest.raises(KeyError, match="mine"):
        run.until_wait()
    assert len(run.results) == 5


@pytest.mark.parametrize(
    "wrong",
    [
        pb.ClassifyStreamResponse(id="99"),
        pb.ClassifyStreamResponse(id="x"),
        pb.ClassifyStreamResponse(id="0", response=pb.ClassifyResponse()),
    ],
)
def test_an_answer_that_fits_nothing_is_the_servers_fault(wrong):
    run = Run(pipeline(), [b"a"])
    run.until_wait()
    run.pipeline.answered(0, wrong.SerializeToString(), run.now)
    with pytest.raises(InternalError, match=r"no request with this id is in flight|0 results for 1 images"):
        run.until_wait()


@pytest.mark.parametrize("tries", [2, 5])
def test_the_time_of_a_request_counts_from_its_first_try(tries):
    run = Run(pipeline(), [b"a"])
    run.until_wait()
    for _ in range(tries):
        lane, message = run.sent.pop()
        run.now += TIMEOUT_S / tries
        run.pipeline.answered(lane, refusal(message, 8, 50), run.now)
        run.until_wait()
        if not run.is_done:
            run.now += run.waited
            run.until_wait()
    assert run.is_done
    assert isinstance(run.results[0].error, QueueFullError)


def test_the_next_image_is_asked_for_once():
    made = pipeline()
    assert made.next_step(0.0) is Step.READ
    assert isinstance(made.next_step(0.0), Wait)


def test_a_request_says_how_long_the_client_waits():
    run = Run(pipeline(), [b"a"])
    run.until_wait()
    assert pb.ClassifyStreamRequest.FromString(run.sent[0][1]).timeout_us == TIMEOUT_S * 1e6


def test_images_in_requests_of_their_own_fill_the_window_together():
    run = Run(pipeline(Limits(1, 2**26, len(NAME))), [bytes(2**23)] * 100)
    run.until_wait()
    assert run.read == 4  # 32 MiB: each request is sent as soon as it is full.


def test_an_answer_clears_the_failures_before_it():
    rests = []
    run = Run(pipeline(lanes=1), [b"a"] * 8)
    run.until_wait()
    for _ in range(2):
        run.pipeline.broke(0, UnavailableError("gone"), run.now)
        run.sent.clear()
        rests.append(run.pipeline._lanes[0].opens - run.now)
        run.now = run.pipeline._lanes[0].opens
        run.until_wait()
        run.reply()
        run.until_wait()
    assert all(0.05 <= rest <= 0.1 for rest in rests)
