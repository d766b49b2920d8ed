"""Decides how many images fit into one request. Pure arithmetic."""

from dataclasses import dataclass
from typing import Final

# Upper limits for the protobuf bytes around one image (tags and lengths), and around all images (those of the request
# with its id and timeout).
_IMAGE_OVERHEAD: Final = 32
_REQUEST_OVERHEAD: Final = 96

# With 64 images the cost of a message is already negligible for each image. More images would only delay the first
# response.
_MOST_IMAGES: Final = 64
_USUAL_BYTES: Final = 4 * 2**20


@dataclass(frozen=True)
class Limits:
    """The maximum number of images in one request, and the maximum size of one message in bytes."""

    images: int
    message_bytes: int
    name_bytes: int = 0
    """UTF-8 length of the model's name and version, which are sent in the same message."""

    @property
    def largest_image(self) -> int:
        """The maximum size in bytes of an image that is alone in its request."""
        return self.message_bytes - self.name_bytes - _REQUEST_OVERHEAD - _IMAGE_OVERHEAD

    @property
    def batch(self) -> int:
        """The number of images in a full request."""
        return min(self.images, _MOST_IMAGES)

    def fits(self, images: int, image_bytes: int, size: int) -> bool:
        """Returns whether an image of `size` bytes fits into a request with `images` images of `image_bytes` in total.

        Several images may have at most 4 MiB together, or `largest_image` if that is less. The first image of a request
        always fits, because it is not loaded if it has more than `largest_image` bytes.
        """
        if not images:
            return True
        room = min(self.largest_image, _USUAL_BYTES) + _IMAGE_OVERHEAD
        return images < self.batch and image_bytes + size + (images + 1) * _IMAGE_OVERHEAD <= room
