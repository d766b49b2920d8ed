"""Learns how much CPU time images take, by kind and size, to share the decoding threads and refuse what comes late.

CPU time, because the time of a thread on a busy machine would say how much others do. The estimate follows fast images
at once and slow ones slowly: a request is refused only if its images are likely to take longer than it has. Small
images tell nothing of large ones: their time may be that of metadata, which a client can make large to harm others.
"""

from collections.abc import Iterable
from dataclasses import dataclass

# Of an image of which nothing is known: a JPEG takes 8 to 20 ns a pixel.
_NS_PER_PIXEL = 12.0
# Every image also takes what so many pixels do: its header, and its row.
_PIXELS_PER_IMAGE = 2**14
_TOWARDS_SLOWER = 0.1
# After a refusal nothing is learned. So the estimate is lowered, or a wrong one would refuse everything for ever.
_AFTER_REFUSAL = 0.9


@dataclass(frozen=True)
class Work:
    """What is known of an image before it is decoded: its `kind`, such as its format, and its pixels.

    `is_quick`: reading it takes less time than handing it to another thread.
    """

    kind: str
    pixels: int
    is_quick: bool = False

    @property
    def size(self) -> int:
        """What the time of an image is proportional to."""
        return self.pixels + _PIXELS_PER_IMAGE

    @property
    def peers(self) -> tuple[str, int]:
        """The images whose time says something of this one's: of its kind, and of its size within a factor of four."""
        return self.kind, self.size.bit_length() // 2


class DecodingTimes:
    """CPU time of images by kind and size. Any thread may use it: a lost update changes an estimate by little."""

    def __init__(self) -> None:
        self._ns: dict[tuple[str, int], float] = {}

    def cost_ns(self, work: Iterable[Work]) -> float:
        """Returns the time that images are likely to take together, known or not."""
        return sum(self._ns.get(each.peers, _NS_PER_PIXEL) * each.size for each in work)

    def least_ns(self, work: Iterable[Work]) -> float:
        """Returns the time that images take at least together: 0 for those whose peers were not read yet."""
        return sum(self._ns.get(each.peers, 0.0) * each.size for each in work)

    def learn(self, work: Work, ns: int) -> None:
        """Notes the time that an image took."""
        took, known = ns / work.size, self._ns.get(work.peers)
        if known is None or took < known:
            self._ns[work.peers] = took
        else:
            self._ns[work.peers] = known + _TOWARDS_SLOWER * (took - known)

    def refused(self, work: Iterable[Work]) -> None:
        """Notes that images were refused because of what is known of them."""
        for peers in {each.peers for each in work}:
            if peers in self._ns:
                self._ns[peers] *= _AFTER_REFUSAL
