"""The requests of a `classify_many` and its connections, as `pipeline` keeps them. Times are seconds of its clock."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from cnnserve.wire import classifier_pb2 as pb

from .results import ImageResult
from .retry import back_off_s


@dataclass(eq=False)
class Request:
    """Consecutive images of the source with their request message, and later with their results."""

    number: int
    message: pb.ClassifyStreamRequest
    # One for each image. None: the response will contain the result.
    results: list[ImageResult | None] = field(default_factory=list)
    # The number of images in the message, and their size in bytes.
    images: int = 0
    image_bytes: int = 0
    # When the first image was added; later, when the request was first sent.
    began: float = 0.0
    # When the request was last sent.
    sent: float = 0.0
    data: bytes = b""
    tries: int = 0
    is_done: bool = False

    def finish(self, results: Sequence[ImageResult]) -> None:
        """Puts `results` in the places of the results that were missing."""
        missing = iter(results)
        self.results = [next(missing) if result is None else result for result in self.results]
        self.data, self.is_done = b"", True


@dataclass(eq=False)
class Lane:
    """One connection with its stream and the requests in flight on it."""

    address: str
    requests: dict[int, Request] = field(default_factory=dict)
    # If requests are in flight: since when the connection has been silent.
    silent_since: float = 0.0
    # When the last response arrived.
    responded: float = -math.inf
    failures: int = 0
    # No request is sent before this time.
    opens: float = 0.0
    # Until its first response, a stream gets only one request. If the server refuses the stream, grpc.aio would lose
    # the reason while it writes further requests.
    has_responded: bool = False

    @property
    def has_room(self) -> bool:
        """Whether the connection may get another request, now or as soon as it opens."""
        return self.has_responded or not self.requests

    def rest(self, now: float, factor: int = 1) -> None:
        """Records a failure. The connection gets no request during `factor` times the usual back-off."""
        self.failures += 1
        self.opens = now + back_off_s(self.failures) * factor
