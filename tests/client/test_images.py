"""Images arrive at the server with the same pixels or bytes; if one cannot be sent, the error names it."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image as Pillow

from cnnserve.wire import classifier_pb2 as pb
from cnnserve_client import InvalidInputError
from cnnserve_client.images import each, fill, take_time

SIDE = st.integers(1, 9)
SHAPES = st.one_of(st.tuples(SIDE, SIDE), st.tuples(SIDE, SIDE, st.sampled_from([1, 3, 4])))


def sent(image) -> pb.Image:
    message = pb.Image()
    fill(message, image, "images[2]")
    return pb.Image.FromString(message.SerializeToString())


def pixels(raw: pb.RawImage) -> np.ndarray:
    return np.frombuffer(raw.data, np.uint8).reshape(raw.height, raw.width, raw.channels)


@given(arrays.arrays(np.uint8, SHAPES))
def test_an_array_arrives_as_it_was(array):
    raw = sent(array).raw
    np.testing.assert_array_equal(pixels(raw), array.reshape(raw.height, raw.width, raw.channels))
    assert (raw.height, raw.width) == array.shape[:2]


@given(arrays.arrays(np.uint8, st.tuples(SIDE, SIDE, st.just(3))))
def test_an_array_that_is_a_view_arrives_in_its_own_order(array):
    for view in (array[::-1], array[:, ::2], array[..., ::-1], array.transpose(1, 0, 2), np.asfortranarray(array)):
        np.testing.assert_array_equal(pixels(sent(view).raw), view)


@given(arrays.arrays(np.uint8, SHAPES))
def test_a_pil_image_arrives_as_the_array_it_was_made_from(array):
    array = array[..., 0] if array.shape[2:] == (1,) else array
    raw = sent(Pillow.fromarray(array)).raw
    np.testing.assert_array_equal(pixels(raw), array.reshape(raw.height, raw.width, raw.channels))


@pytest.mark.parametrize("mode", ["1", "P", "CMYK", "YCbCr", "LA", "F", "I"])
def test_other_pil_modes_are_converted_to_rgb(mode):
    image = Pillow.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).convert("RGB").convert(mode)
    np.testing.assert_array_equal(pixels(sent(image).raw), np.asarray(image.convert("RGB")))


@given(st.binary())
def test_bytes_arrive_as_they_were(data):
    for form in (data, bytearray(data), memoryview(data)):
        message = sent(form)
        assert message.WhichOneof("content") == "encoded"
        assert message.encoded == data


def test_a_path_arrives_as_the_bytes_of_its_file(tmp_path):
    path = tmp_path / "digit.png"
    path.write_bytes(b"\x89PNG")
    assert sent(path).encoded == sent(str(path)).encoded == b"\x89PNG"


def test_a_broken_file_behind_a_pil_image_is_bad_input(tmp_path):
    path = tmp_path / "half.png"
    Pillow.fromarray(np.random.default_rng(0).integers(0, 255, (99, 99), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:500])
    with Pillow.open(path) as image, pytest.raises(InvalidInputError, match=r"images\[2\]: Pillow cannot decode"):
        fill(pb.Image(), image, "images[2]")


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Path("gone.png"), r"images\[2\]: cannot read 'gone.png': No such file or directory"),
        (".", "cannot read '.': Is a directory"),
        ("a\0b", "null byte"),
        (np.zeros((2, 2), np.float32), r"images\[2\] has dtype float32: expected uint8 with values from 0 to 255"),
        (np.zeros((2, 2), np.int8), "dtype int8"),
        (np.zeros((2, 2), bool), "dtype bool"),
        (np.zeros(4, np.uint8), r"images\[2\] has shape \(4,\): expected HxW, HxWx1, HxWx3 or HxWx4$"),
        (np.uint8(4)[...], r"shape \(\): expected"),
        (np.zeros((5, 5, 2), np.uint8), r"shape \(5, 5, 2\): expected HxW, HxWx1, HxWx3 or HxWx4$"),
        (np.zeros((3, 8, 8), np.uint8), r"if the channels come first, send array.transpose\(1, 2, 0\)"),
        (np.zeros((2, 8, 8, 3), np.uint8), r"to send a batch, use list\(array\)"),
        (np.zeros((0, 8, 3), np.uint8), r"has shape \(0, 8, 3\) and so no pixels"),
        (7, r"images\[2\] has type int: expected a path"),
        (None, "has type NoneType"),
        ([b"nested"], "has type list"),
    ],
)
def test_what_cannot_be_sent_is_named_with_what_was_expected(image, expected):
    with pytest.raises(InvalidInputError, match=expected) as caught:
        fill(pb.Image(), image, "images[2]")
    assert caught.value.code == "INVALID_ARGUMENT"
    assert isinstance(caught.value, ValueError)


def test_one_image_and_many_are_told_apart():
    array = np.zeros((2, 2), np.uint8)
    picture = Pillow.fromarray(array)
    for single in (b"x", bytearray(b"x"), memoryview(b"x"), "x.png", Path("x.png"), array, picture):
        assert [name for name, _ in each(single)] == ["images"]
    assert list(each([b"x", b"y"])) == [("images[0]", b"x"), ("images[1]", b"y")]
    assert list(each((b"x",))) == [("images[0]", b"x")]
    assert list(each([])) == []


def test_only_files_and_pil_images_take_time():
    array = np.zeros((2, 2), np.uint8)
    assert not take_time([b"x", array])
    assert take_time([b"x", "x.png"])
    assert take_time(Pillow.fromarray(array))
