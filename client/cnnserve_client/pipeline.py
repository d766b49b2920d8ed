"""Decides for `classify_many` which images to read, send, send again and hand out. Knows no transport.

A client asks `next_step` what to do, does it, and reports the outcome with `add`, `answered` or `broke`. Rules:

- Results are handed out in the order of the images. A request is handed out as a whole, when all its results are known.
- The source is read only while the number and the bytes of the requests between source and consumer are below a limit.
- A request is sent although it is not full only if the source has ended, if the next image does not fit, or if no other
  request is pending and the first image of this one has waited for 20 ms.
- If a stream breaks, its requests in flight are sent again on any connection. If the server refuses a request as
  UNAVAILABLE or because its queue is full, that request is sent again, too. Classifying changes nothing on the server,
  so a lost response costs only time.
- If another connection responds, a connection may be silent for half the timeout of a request or for twice the time of
  the slowest response, whichever is longer. Then its stream is cancelled and its requests are sent to the others. If no
  other connection responds, its requests fail when their timeout has passed.
- The run ends with an error if no server is available for the timeout of a request, or if the servers stay silent for
  that time once more after requests have failed. It also ends with an error that would occur again.
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
from .errors import CnnserveError, InternalError, InvalidInputError, QueueFullError, UnavailableError, no_response
from .images import Image
from .in_flight import Lane, Request
from .results import ImageResult
from .retry import back_off_s

# For each connection: images and bytes that are read and not handed out, and the requests that hold them.
_IMAGES_AHEAD: Final = 128
_BYTES_AHEAD: Final = 32 * 2**20
_MOST_REQUESTS: Final = 32
_LINGER_S: Final = 0.02
# The server itself ends a request that is late. This is the time for its response to arrive.
_GRACE_S: Final = 1.0
_RESTS_AMONG_OTHERS: Final = 12
_LONGEST_REST_S: Final = 300.0
_LONGEST_WAIT_S: Final = 3600.0  # threads and event loops cannot wait for any length of time


class Step(Enum):
    """The steps without arguments."""

    # Not repeated until the image is added; until then, `next_step` returns other steps.
    READ = "take the next image from the source"
    DONE = "everything is handed out"


@dataclass(frozen=True)
class Deliver:
    """Hand out these results."""

    results: Sequence[ImageResult]


@dataclass(frozen=True)
class Send:
    """Send `data` on the stream of a connection. If it has no stream, open one."""

    lane: int
    data: bytes


@dataclass(frozen=True)
class Abandon:
    """Cancel the stream of a connection, because the server is silent."""

    lane: int


@dataclass(frozen=True)
class Wait:
    """Wait until something arrives, at most `seconds`."""

    seconds: float


class Pipeline:
    """The state of one `classify_many`. The beginning of this file has the rules.

    Args:
        request: model, version and top_k, which are copied into each request.
        limits: how much one request may hold.
        lanes: the address of each connection. A lane is a connection with its stream.
        timeout_s: seconds that a request may take, and that no server may be available.
    """

    def __init__(self, request: pb.ClassifyRequest, limits: Limits, lanes: Sequence[str], timeout_s: float) -> None:
        self._template = request
        self._limits = limits
        self._timeout_s = timeout_s
        self._lanes = [Lane(address) for address in lanes]
        self._window = len(lanes) * min(_MOST_REQUESTS, max(4, _IMAGES_AHEAD // limits.batch))
        self._window_bytes = len(lanes) * _BYTES_AHEAD
        self._order: deque[Request] = deque()  # complete requests that are not handed out
        self._bytes = 0
        self._filling: Request | None = None
        self._due: list[tuple[float, int, Request]] = []  # a heap: when to send which request
        self._read = 0
        self._made = 0
        self._slowest_s = 0.0  # the slowest response so far
        self._exhausted = False
        self._is_reading = False
        self._away_since: float | None = None
        self._failure: CnnserveError | None = None
        self._fatal: CnnserveError | None = None
        self._source_error: BaseException | None = None
        self._now = 0.0

    def next_step(self, now: float) -> Step | Deliver | Send | Abandon | Wait:
        """Returns what to do now.

        Raises the error that ends the run, but only after all results before it were handed out.
        """
        self._catch_up(now)
        if self._order and self._order[0].is_done:
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
        """Adds the next image of the source, or a finished result."""
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
            self._seal(request, now)  # a source of failures only must not fill the memory

    def exhausted(self, error: BaseException | None = None) -> None:
        """Records that the source has no more images, or that it raised `error`."""
        self._exhausted, self._is_reading = True, False
        self._source_error = error

    def answered(self, lane: int, data: bytes, now: float) -> None:
        """Records a response message from the stream of a connection."""
        message = pb.ClassifyStreamResponse.FromString(data)
        state = self._lanes[lane]
        state.silent_since, state.responded, state.has_responded, self._away_since = now, now, True, None
        request = state.requests.pop(int(message.id), None) if message.id.isdecimal() else None
        if request is not None:
            self._slowest_s = max(self._slowest_s, now - request.sent)
        if request is None:
            self._fatal = InternalError(
                f"the server sent a response with id {message.id!r}, but no request with this id is in flight"
            )
        elif message.WhichOneof("outcome") == "response":
            state.failures = 0
            self._fill_in(request, message.response)
        else:
            self._refused(state, request, calls.error_of(message.error), now)

    def broke(self, lane: int, error: CnnserveError, now: float) -> None:
        """Records that the stream of a connection ended with `error`."""
        state = self._lanes[lane]
        self._rest(state, now)
        state.has_responded = False
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
            request.is_done = True
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
            lane.silent_since = now
        lane.requests[request.number] = request
        if not request.tries:
            request.began = now
        request.sent = now
        request.tries += 1
        return Send(number, request.data)

    def _rest(self, failed: Lane, now: float) -> None:
        # If another connection responds, the failed one is tried less often: each try on it delays all later results.
        others = any(lane.has_responded for lane in self._lanes if lane is not failed)
        failed.rest(now, _RESTS_AMONG_OTHERS if others else 1)

    def _missed(self, error: CnnserveError, now: float) -> None:
        """Records that no server responds. Any response clears this again."""
        self._failure = error
        self._away_since = now if self._away_since is None else self._away_since

    def _abandon(self, now: float) -> Abandon | None:
        """Gives up a connection that has been silent for too long, if there is one."""
        for number, lane in enumerate(self._lanes):
            if lane.requests and now > lane.silent_since + self._silence_s(lane):
                self._give_up(lane, now)
                return Abandon(number)
        return None

    def _others_respond(self, silent: Lane) -> bool:
        """Returns whether another connection works: it responded since `silent` became silent, or has nothing to do."""
        return any(
            lane.has_responded and (not lane.requests or lane.responded > silent.silent_since)
            for lane in self._lanes
            if lane is not silent
        )

    def _silence_s(self, lane: Lane) -> float:
        """Returns how many seconds a connection may be silent."""
        longest_s = self._timeout_s + _GRACE_S
        if self._others_respond(lane):  # they need time for its requests
            return min(max(self._timeout_s / 2, 2 * self._slowest_s), longest_s)
        return longest_s

    def _give_up(self, lane: Lane, now: float) -> None:
        error = no_response(lane.address, self._timeout_s)
        for request in lane.requests.values():
            if now < request.began + self._timeout_s:
                self._later(request, now)
            else:
                request.finish([ImageResult(error=error)] * request.images)
        lane.requests.clear()
        lane.has_responded = False
        self._rest(lane, now)
        if self._others_respond(lane):
            # Each try on a silent connection delays all later results.
            rest_s = self._timeout_s * 2.0 ** min(lane.failures - 1, 10)
            lane.opens = max(lane.opens, now + min(rest_s, _LONGEST_REST_S))
        else:
            self._missed(error, now)

    def _wants_images(self) -> bool:
        return not self._exhausted and len(self._order) < self._window and self._bytes < self._window_bytes

    def _is_slow(self, filling: Request, now: float) -> bool:
        """Returns whether to send a request before it is full, because its next image is late or will not come."""
        return self._exhausted or (not self._order and now > filling.began + _LINGER_S)

    def _catch_up(self, now: float) -> None:
        """Gives the servers more time if this client was busy, so that its own delay does not count as silence."""
        if now > self._now + _GRACE_S:
            for lane in self._lanes:
                lane.silent_since = max(lane.silent_since, now + _GRACE_S - self._silence_s(lane))
        self._now = now

    def _wait(self, now: float) -> Wait:
        """Returns how long to wait for the next step. Raises the last failure if no server responded for too long."""
        if not self._order:
            self._away_since = None  # without a request, no server could respond
        if self._away_since is not None and now > self._away_since + self._timeout_s:
            assert self._failure is not None
            raise self._failure
        times = [lane.silent_since + self._silence_s(lane) for lane in self._lanes if lane.requests]
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
            self._fatal = InternalError(f"the server returned {len(results)} results for {request.images} images")
            return
        request.finish(results)

    def _refused(self, lane: Lane, request: Request, error: CnnserveError, now: float) -> None:
        if isinstance(error, UnavailableError | QueueFullError):
            if isinstance(error, UnavailableError):
                self._rest(lane, now)
            wait_s = error.retry_after_s if isinstance(error, QueueFullError) else back_off_s(request.tries)
            if now + wait_s < request.began + self._timeout_s:
                self._later(request, now + wait_s)
                return
        request.finish([ImageResult(error=error)] * request.images)
