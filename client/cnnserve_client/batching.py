"""How many images go into one request. Pure arithmetic, no I/O of its own."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, TypeVar

Item = TypeVar("Item")

# The field tags and lengths around one image, and those around all of them, never take more bytes than this.
_IMAGE_OVERHEAD: Final = 32
_REQUEST_OVERHEAD: Final = 32


@dataclass(frozen=True)
class Limits:
    """What one request may hold."""

    images: int
    message_bytes: int
    name_bytes: int = 0
    """UTF-8 length of the model's name and version, which travel in the same message."""

    @property
    def largest_image(self) -> int:
        """The most bytes an image can have and still be sent, alone in its request."""
        return self.message_bytes - self.name_bytes - _REQUEST_OVERHEAD - _IMAGE_OVERHEAD


def batches(items: Iterable[Item], size: Callable[[Item], int], limits: Limits) -> Iterator[list[Item]]:
    """Group items, in order, into requests within `limits`; `size` is an image's bytes.

    An item over `largest_image` comes alone. `items` is read one further than the group that is asked for, so one
    request's images are in memory and one more.
    """
    room = limits.largest_image + _IMAGE_OVERHEAD
    batch: list[Item] = []
    filled = 0
    for item in items:
        cost = size(item) + _IMAGE_OVERHEAD
        if batch and (len(batch) >= limits.images or filled + cost > room):
            yield batch
            batch, filled = [], 0
        batch.append(item)
        filled += cost
    if batch:
        yield batch
