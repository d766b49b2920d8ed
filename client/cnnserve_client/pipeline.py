"""Many images over streams: what is read, sent, sent again, waited for and handed out next. Knows no transport.

A client asks `next_step` what to do, does it, and tells what came of it (`add`, `answered`, `broke`). Rules:

- Results come in the order of the images. A request is handed out once, when all of it is answered.
- The source is read only while fewer than a window of requests are between it and the consumer.
- A request that goes out half full does so because nothing is under way and the next image is slow to come.
- What a stream that broke had not answered is sent again, on whichever connection is there; so is a request that the
  server put off. Classifying changes nothing on the server, so an answer that was lost costs time only.
- A connection that is silent for half the time a request has, and for twice what the slowest answer took, is given up
  where others answer; they get its requests. Where none does, its requests fail when their time is over.
- Servers that are away, or silent again after that, for the time a request has end the run; so does an error that
  another try would repeat.
"""

import heapq
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from cnnserve.wire import classifier_pb2 as pb

from . import calls, images
from .batching import Limits
from .errors import (
    CnnserveError,
    DeadlineExceededError,
    InternalError,
    InvalidInputError,
    QueueFullError,
    UnavailableError,
)
from .images import Image
from .results import ImageResult
from .retry import back_off_s
from .under_way import Lane, Request

_IMAGES_UNDER_WAY: Final = 128
_BYTES_UNDER_WAY: Final = 32 * 2**20
_MOST_REQUESTS: Final = 32
_LINGER_S: Final = 0.02
# The server ends a late request itself; its answer gets this long to come.
_GRACE_S: Final = 1.0
_RESTS_AMONG_OTHERS: Final = 12
_LONGEST_REST_S: Final = 300.0
_LONGEST_WAIT_S: Final = 3600.0  # clocks of threads and event loops have their limits


class Step(Enum):
    """What has no details."""

    READ = "take the next image from the source"  # said once; what else there is to do follows until it is added
    DONE = "everything is handed out"


@dataclass(frozen=True)
class Deliver:
    """Hand these out."""

    results: Sequence[ImageResult]


@dataclass(frozen=True)
class Send:
    """Send this on a connection's stream, opening one where there is none."""

    lane: int
    data: bytes


@dataclass(frozen=True)
class Abandon:
    """This connection's stream answers no more: cancel it."""

    lane: int


@dataclass(frozen=True)
class Wait:
    """Until something arrives, and this many seconds at most."""

    seconds: float


class Pipeline:
    """The state of one `classify_many`; see the head of this file.

    Args:
        request: model, version and top_k; copied into each request.
        limits: what one request may hold.
        lanes: the address of each connection to spread requests over.
        timeout_s: seconds that a request may take, and how long servers may be away.
    """

    def __init__(self, request: pb.ClassifyRequest, limits: Limits, lanes: Sequence[str], timeout_s: float) -> None:
        self._template = request
        self._limits = limits
        self._timeout_s = timeout_s
        self._lanes = [Lane(address) for address in lanes]
        self._window = len(lanes) * min(_MOST_REQUESTS, max(4, _IMAGES_UNDER_WAY // limits.batch))
        self._window_bytes = len(lanes) * _BYTES_UNDER_WAY
        self._order: deque[Request] = deque()  # sealed, not handed out
        self._bytes = 0
        self._filling: Request | None = None
        self._due: list[tuple[float, int, Request]] = []  # to be sent, at which time
        self._read = 0
        self._made = 0
        self._slowest_s = 0.0  # of all answers
        self._exhausted = False
        self._is_reading = False
        self._away_since: float | None = None
        self._failure: CnnserveError | None = None
        self._fatal: CnnserveError | None = None
        self._source_error: BaseException | None = None
        self._now = 0.0

    def next_step(self, now: float) -> Step | Deliver | Send | Abandon | Wait:
        """What to do now. Raises the error that ends the run, after all that came before it was handed out."""
        self._catch_up(now)
        if self._order and self._order[0].is_answered:
            request = self._order.popleft()
            self._bytes -= request.image_bytes
            return Deliver([result for result in request.results if result is not None])
        if self._fatal is not None:
            raise self._fatal
        if self._filling is not None and self._is_slow(self._filling, now):
            self._seal(self._filling, now)
            return self.next_step(now)
        step = self._send(now) or self._abandon(now)
        if step is not None:
            return step
        if self._wants_images() and not self._is_reading:
            self._is_reading = True
            return Step.READ
        if self._is_reading or self._order:
            return self._wait(now)
        if self._source_error is not None:
            raise self._source_error
        return Step.DONE

    def add(self, image: Image | ImageResult, now: float) -> None:
        """The source's next image, or a result that stands already."""
        self._is_reading = False
        name = f"images[{self._read}]"
        self._read += 1
        if not isinstance(image, ImageResult):
            try:
                self._put(images.load(image, name, self._limits.largest_image), now)
                return
            except InvalidInputError as error:
                image = ImageResult(error=error)
        request = self._filling or self._new(now)
        request.results.append(image)
        if len(request.results) >= 2 * self._limits.batch:
            self._seal(request, now)  # failures alone must not pile up

    def exhausted(self, error: BaseException | None = None) -> None:
        """The source has no more images; `error` is what it raised."""
        self._exhausted, self._is_reading = True, False
        self._source_error = error

    def answered(self, lane: int, data: bytes, now: float) -> None:
        """A message from a connection's stream."""
        answer = pb.ClassifyStreamResponse.FromString(data)
        state = self._lanes[lane]
        state.heard, state.answered, state.is_proved, self._away_since = now, now, True, None
        request = state.requests.pop(int(answer.id), None) if answer.id.isdecimal() else None
        if request is not None:
            self._slowest_s = max(self._slowest_s, now - request.sent)
        if request is None:
            self._fatal = InternalError(f"the server answered a request {answer.id!r} that is not under way")
        elif answer.WhichOneof("outcome") == "response":
            state.failures = 0
            self._fill_in(request, answer.response)
        else:
            self._refused(state, request, calls.error_of(answer.error), now)

    def broke(self, lane: int, error: CnnserveError, now: float) -> None:
        """A connection's stream ended."""
        state = self._lanes[lane]
        self._rest(state, now)
        state.is_proved = False
        for request in state.requests.values():
            self._later(request, now)
        state.requests.clear()
        if not isinstance(error, UnavailableError):
            self._fatal = error
            return
        self._missed(error, now)

    def _new(self, now: float) -> Request:
        message = pb.ClassifyStreamRequest(id=str(self._made), timeout_us=int(self._timeout_s * 1e6))
        message.request.CopyFrom(self._template)
        self._filling = Request(self._made, message, began=now)
        self._made += 1
        return self._filling

    def _put(self, data: bytes | images.Pixels, now: float) -> None:
        size = images.size(data)
        request = self._filling
        if request is not None and not self._limits.fits(request.images, request.image_bytes, size):
            self._seal(request, now)
            request = None
        request = request or self._new(now)
        images.put(request.message.request.images.add(), data)
        request.images += 1
        request.image_bytes += size
        request.results.append(None)
        if request.images == self._limits.batch:
            self._seal(request, now)

    def _seal(self, request: Request, now: float) -> None:
        self._filling = None
        self._order.append(request)
        self._bytes += request.image_bytes
        if request.images:
            request.data = request.message.SerializeToString()
            self._later(request, now)
        else:
            request.is_answered = True
        request.message.Clear()

    def _later(self, request: Request, due: float) -> None:
        heapq.heappush(self._due, (due, request.number, request))

    def _send(self, now: float) -> Send | None:
        if not (self._due and self._due[0][0] <= now):
            return None
        open_lanes = [number for number, lane in enumerate(self._lanes) if lane.opens <= now and lane.has_room]
        if not open_lanes:
            return None
        number = min(open_lanes, key=lambda n: len(self._lanes[n].requests))
        lane = self._lanes[number]
        request = heapq.heappop(self._due)[2]
        if not lane.requests:
            lane.heard = now
        lane.requests[request.number] = request
        if not request.tries:
            request.began = now
        request.sent = now
        request.tries += 1
        return Send(number, request.data)

    def _rest(self, failed: Lane, now: float) -> None:
        """Where others answer, seldom is enough: each try on a silent address holds up all results behind it."""
        others = any(lane.is_proved for lane in self._lanes if lane is not failed)
        failed.rest(now, _RESTS_AMONG_OTHERS if others else 1)

    def _missed(self, error: CnnserveError, now: float) -> None:
        """A server that should have answered did not; one answer makes up for it."""
        self._failure = error
        self._away_since = now if self._away_since is None else self._away_since

    def _abandon(self, now: float) -> Abandon | None:
        """Gives up a connection that was silent for too long."""
        for number, lane in enumerate(self._lanes):
            if lane.requests and now > lane.heard + self._patience_s(lane):
                self._give_up(lane, now)
                return Abandon(number)
        return None

    def _others_answer(self, silent: Lane) -> bool:
        """Whether another connection answered meanwhile, or was asked nothing."""
        return any(
            lane.is_proved and (not lane.requests or lane.answered > silent.heard)
            for lane in self._lanes
            if lane is not silent
        )

    def _patience_s(self, lane: Lane) -> float:
        """How long a connection may be silent: where others answer, as long as leaves its requests time for them."""
        longest_s = self._timeout_s + _GRACE_S
        if self._others_answer(lane):
            return min(max(self._timeout_s / 2, 2 * self._slowest_s), longest_s)
        return longest_s

    def _give_up(self, lane: Lane, now: float) -> None:
        error = DeadlineExceededError(f"no answer from {lane.address} within {self._timeout_s:g} s")
        for request in lane.requests.values():
            if now < request.began + self._timeout_s:
                self._later(request, now)
            else:
                request.answer([ImageResult(error=error)] * request.images)
        lane.requests.clear()
        lane.is_proved = False
        self._rest(lane, now)
        if self._others_answer(lane):
            # Each try holds up all that comes after it.
            rest_s = self._timeout_s * 2.0 ** min(lane.failures - 1, 10)
            lane.opens = max(lane.opens, now + min(rest_s, _LONGEST_REST_S))
        else:
            self._missed(error, now)

    def _wants_images(self) -> bool:
        return not self._exhausted and len(self._order) < self._window and self._bytes < self._window_bytes

    def _is_slow(self, filling: Request, now: float) -> bool:
        """Whether a request goes out as it is: nothing more comes, or not soon while the server has nothing to do."""
        return self._exhausted or (not self._order and now > filling.began + _LINGER_S)

    def _catch_up(self, now: float) -> None:
        """A consumer or source that took its time, and the event loop with it, is no silence of the server's."""
        if now > self._now + _GRACE_S:
            for lane in self._lanes:
                lane.heard = max(lane.heard, now + _GRACE_S - self._patience_s(lane))
        self._now = now

    def _wait(self, now: float) -> Wait:
        """Until the next time at which there is something to do. Raises where servers were away for too long."""
        if not self._order:
            self._away_since = None  # nobody is missed while there is nothing to ask
        if self._away_since is not None and now > self._away_since + self._timeout_s:
            assert self._failure is not None
            raise self._failure
        times = [lane.heard + self._patience_s(lane) for lane in self._lanes if lane.requests]
        if self._due and (opens := [lane.opens for lane in self._lanes if lane.has_room]):
            times.append(max(self._due[0][0], min(opens)))
        if self._away_since is not None:
            times.append(self._away_since + self._timeout_s)
        if self._filling is not None and not self._order:
            times.append(self._filling.began + _LINGER_S)
        wait_s = min(max(0.0, min(times, default=math.inf) - now) + 0.001, _LONGEST_WAIT_S)
        self._now = now + wait_s
        return Wait(wait_s)

    def _fill_in(self, request: Request, response: pb.ClassifyResponse) -> None:
        results = calls.image_results(response)
        if len(results) != request.images:
            self._fatal = InternalError(f"the server answered {len(results)} results for {request.images} images")
            return
        request.answer(results)

    def _refused(self, lane: Lane, request: Request, error: CnnserveError, now: float) -> None:
        if isinstance(error, UnavailableError | QueueFullError):
            if isinstance(error, UnavailableError):
                self._rest(lane, now)
            wait_s = error.retry_after_s if isinstance(error, QueueFullError) else back_off_s(request.tries)
            if now + wait_s < request.began + self._timeout_s:
                self._later(request, now + wait_s)
                return
        request.answer([ImageResult(error=error)] * request.images)
