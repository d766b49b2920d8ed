"""What `pipeline` keeps of a request and of a connection."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from cnnserve.wire import classifier_pb2 as pb

from .results import ImageResult
from .retry import back_off_s


@dataclass(eq=False)
class Request:
    """Some of the source's images, in order: their message, then their results."""

    number: int
    message: pb.ClassifyStreamRequest
    # One per image; None where the answer will have it.
    results: list[ImageResult | None] = field(default_factory=list)
    images: int = 0
    image_bytes: int = 0
    began: float = 0.0
    sent: float = 0.0  # the last time
    data: bytes = b""
    tries: int = 0
    is_answered: bool = False

    def answer(self, results: Sequence[ImageResult]) -> None:
        """Fills in what was open."""
        answers = iter(results)
        self.results = [next(answers) if result is None else result for result in self.results]
        self.data, self.is_answered = b"", True


@dataclass(eq=False)
class Lane:
    """One connection: what is under way on it, since when it is silent, and when it may be used again."""

    address: str
    requests: dict[int, Request] = field(default_factory=dict)
    heard: float = 0.0  # since when it is silent, where something is under way
    answered: float = -math.inf  # when the last answer came
    failures: int = 0
    opens: float = 0.0
    # Until its stream answered once it gets one request: one that is refused says why, and grpc.aio loses that reason
    # where more is being written.
    is_proved: bool = False

    @property
    def has_room(self) -> bool:
        """Whether another request may go there, now or when it opens."""
        return self.is_proved or not self.requests

    def rest(self, now: float, times: int = 1) -> None:
        """It failed: others first, `times` as long as usual."""
        self.failures += 1
        self.opens = now + back_off_s(self.failures) * times
