"""What one request may hold. Pure arithmetic."""

from dataclasses import dataclass
from typing import Final

# The field tags and lengths around one image, and those around all of them with id and timeout, never take more bytes.
_IMAGE_OVERHEAD: Final = 32
_REQUEST_OVERHEAD: Final = 96

# More would only make the first answer later: 64 images cost each other next to nothing of a message's price.
_MOST_IMAGES: Final = 64
_USUAL_BYTES: Final = 4 * 2**20


@dataclass(frozen=True)
class Limits:
    """The most images of one request, and the most bytes of one message."""

    images: int
    message_bytes: int
    name_bytes: int = 0
    """UTF-8 length of the model's name and version, which travel in the same message."""

    @property
    def largest_image(self) -> int:
        """The most bytes an image can have and still be sent, alone in its request."""
        return self.message_bytes - self.name_bytes - _REQUEST_OVERHEAD - _IMAGE_OVERHEAD

    @property
    def batch(self) -> int:
        """Images of a full request."""
        return min(self.images, _MOST_IMAGES)

    def fits(self, images: int, image_bytes: int, size: int) -> bool:
        """Whether an image of `size` bytes goes into a request that holds `images` of `image_bytes` together.

        A request takes several images up to some MiB, and one of any size.
        """
        if not images:
            return True
        room = min(self.largest_image, _USUAL_BYTES) + _IMAGE_OVERHEAD
        return images < self.batch and image_bytes + size + (images + 1) * _IMAGE_OVERHEAD <= room
