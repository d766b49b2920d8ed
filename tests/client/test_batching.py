"""How many images share a request."""

import pytest

from cnnserve.wire import classifier_pb2 as pb
from cnnserve_client.batching import Limits

MIB = 2**20


@pytest.mark.parametrize(("images", "batch"), [(1, 1), (32, 32), (64, 64), (65, 64), (1000, 64)])
def test_a_full_request(images: int, batch: int) -> None:
    limits = Limits(images, 64 * MIB)
    assert limits.batch == batch
    assert limits.fits(batch - 1, 0, 1)
    assert not limits.fits(batch, 0, 1) or batch == 0


def test_the_first_image_always_fits() -> None:
    assert Limits(1, MIB).fits(0, 0, 2**40)


def test_images_together_have_at_most_4_mib() -> None:
    limits = Limits(64, 64 * MIB)
    assert limits.fits(1, 3 * MIB, MIB - 32)
    assert not limits.fits(1, 3 * MIB, MIB - 31)
    assert limits.fits(3, 3 * MIB, MIB - 3 * 32)
    assert not limits.fits(3, 3 * MIB, MIB - 3 * 32 + 1)


@pytest.mark.parametrize("message_bytes", [1000, 10_000])
def test_small_messages_bound_them_further(message_bytes: int) -> None:
    limits = Limits(64, message_bytes, 10)
    assert limits.largest_image == message_bytes - 10 - 96 - 32
    assert limits.fits(1, limits.largest_image - 132, 100)
    assert not limits.fits(1, limits.largest_image - 132, 101)


@pytest.mark.parametrize("images", [1, 2, 50])
@pytest.mark.parametrize("name", ["m", "a-long-name-of-a-model" * 5])
def test_a_request_that_fits_is_no_larger_than_a_message(images: int, name: str) -> None:
    """The largest one that these limits allow, as it is sent."""
    message_bytes = 20_000
    limits = Limits(64, message_bytes, len(name))
    sizes: list[int] = []
    while len(sizes) < images:
        rest = limits.largest_image - sum(sizes) if len(sizes) == images - 1 else 100
        size = next(size for size in range(rest, 0, -1) if limits.fits(len(sizes), sum(sizes), size))
        sizes.append(size)
    request = pb.ClassifyStreamRequest(id=str(2**60), timeout_us=2**60)
    request.request.model, request.request.top_k = name, 2**31
    for size in sizes:
        request.request.images.add(encoded=bytes(size))
    assert message_bytes * 0.7 < request.ByteSize() <= message_bytes
