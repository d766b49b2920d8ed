"""Messages whose parsing would take many times their size are refused before it."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnserve.api import field_count
from cnnserve.api.field_count import MOST_FIELDS, check_fields
from cnnserve.errors import InvalidInput
from cnnserve.wire import classifier_pb2 as c
from cnnserve.wire import open_inference_pb2 as o

INFER = o.ModelInferRequest.DESCRIPTOR
MIB = 2**20


@pytest.mark.parametrize(
    "data",
    [
        b"\x2a\x00" * (MIB // 2),
        b"\x3a\x00" * (MIB // 2),
        # One input with a million parameters, contents, dimensions that are not packed.
        o.ModelInferRequest.FromString(b"").SerializeToString() + b"\x2a" + b"\x80\x80\x40" + b"\x22\x00" * (MIB // 2),
        b"\x2a\x80\x80\x40" + b"\x18\x01" * (MIB // 2),
        b"\xf8\x7f\x01" * (MIB // 3),
    ],
)
def test_millions_of_fields_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput, match=f"more than {MOST_FIELDS} fields"):
        check_fields(data, INFER, 64 * MIB)


def test_numbers_that_grow_are_refused() -> None:
    request = o.ModelInferRequest()
    request.inputs.add(name="x", datatype="INT64", shape=[MIB]).contents.int64_contents.extend([1] * MIB)
    data = request.SerializeToString()
    check_fields(data, INFER, 64 * MIB)
    with pytest.raises(InvalidInput, match="raw_input_contents"):
        check_fields(data, INFER, MIB)


def test_what_clients_send_passes() -> None:
    request = o.ModelInferRequest(model_name="m")
    request.inputs.add(name="x", datatype="FP32", shape=[32, 3, 224, 224]).contents.fp32_contents.extend([0.5] * MIB)
    check_fields(request.SerializeToString(), INFER, MIB)
    images = c.ClassifyRequest(images=[c.Image(encoded=bytes(1000))] * 1024)
    check_fields(images.SerializeToString(), c.ClassifyRequest.DESCRIPTOR, MIB)


@given(st.binary(max_size=200), st.integers(0, 300))
@settings(deadline=None)
def test_any_bytes_are_counted_to_their_end(data: bytes, repeat: int) -> None:
    """Whatever the parser accepts has as many fields as were counted, and whatever it refuses ends the count."""
    counter = field_count._Counter(data * repeat)
    try:
        counter.count(0, len(counter.data), INFER)
    except InvalidInput:
        return
    try:
        message = o.ModelInferRequest.FromString(counter.data)
    except DecodeError:
        return
    found = len(message.inputs) + len(message.outputs) + len(message.raw_input_contents) + len(message.parameters)
    assert counter.fields >= found
