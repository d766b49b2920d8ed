"""Requests stay within their limits, in order, and as few as order allows."""

from itertools import chain, pairwise

from hypothesis import given
from hypothesis import strategies as st

from cnnserve.wire import classifier_pb2 as pb
from cnnserve_client.batching import Limits, batches

NAME = "model"
IMAGES = st.lists(st.integers(0, 400).map(bytes), max_size=30)
LIMITS = st.builds(Limits, st.integers(1, 8), st.integers(100, 1000), st.just(len(NAME)))


def message_bytes(images: list[bytes]) -> int:
    request = pb.ClassifyRequest(model=NAME, top_k=2**32 - 1)
    for image in images:
        request.images.add(encoded=image)
    return request.ByteSize()


@given(IMAGES, LIMITS)
def test_requests_hold_every_image_once_in_order_and_fit(images, limits):
    groups = list(batches(images, len, limits))
    assert list(chain.from_iterable(groups)) == images
    for group in groups:
        assert 1 <= len(group) <= limits.images
        if len(group) > 1 or len(group[0]) <= limits.largest_image:
            assert message_bytes(group) <= limits.message_bytes


@given(IMAGES, LIMITS)
def test_no_request_is_cut_short(images, limits):
    slack = 70 + 40 * limits.images  # what is set aside for tags and lengths
    for group, following in pairwise(batches(images, len, limits)):
        full = message_bytes([*group, following[0]]) + slack > limits.message_bytes
        assert len(group) == limits.images or full


def test_the_overhead_suffices_for_the_largest_lengths():
    largest = Limits(1, 2**31 - 1, len(NAME)).largest_image
    raw = pb.Image(raw=pb.RawImage(data=b"", height=2**32 - 1, width=2**32 - 1, channels=4))
    lengths = 2 * 5 + 2  # varints and tags of a data field and an image near 2 GiB
    assert 2**31 - 1 - largest >= message_bytes([]) + raw.ByteSize() + lengths


def test_images_are_read_one_request_ahead_at_most():
    read = []

    def files():
        for number in range(10):
            read.append(number)
            yield bytes(number)

    next(batches(files(), len, Limits(3, 1000)))
    assert read == [0, 1, 2, 3]
