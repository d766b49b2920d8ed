"""Reading and writing Open Inference tensors."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cnnserve.api import tensors
from cnnserve.datatypes import NUMPY_TYPES
from cnnserve.errors import InvalidInput
from cnnserve.wire import open_inference_pb2 as pb

TYPED = tensors._TYPED_FIELDS


def any_array(names: list[str]) -> st.SearchStrategy[tuple[str, np.ndarray]]:
    def of(name: str) -> st.SearchStrategy[tuple[str, np.ndarray]]:
        shape = hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4)
        return st.tuples(st.just(name), hnp.arrays(NUMPY_TYPES[name], shape))

    return st.sampled_from(names).flatmap(of)


def read_one(request: pb.ModelInferRequest) -> np.ndarray:
    tensor = request.inputs[0]
    tensors.check_shape(tensor)
    return tensors.read(tensor, tensors.raw_contents(request))


@given(any_array(list(NUMPY_TYPES)))
def test_raw_round_trip(item: tuple[str, np.ndarray]) -> None:
    datatype, array = item
    response = pb.ModelInferResponse()
    response.raw_output_contents.append(tensors.write_output(response, "x", array))
    assert response.outputs[0].datatype == datatype
    request = pb.ModelInferRequest(raw_input_contents=response.raw_output_contents)
    request.inputs.add(name="x", datatype=datatype, shape=response.outputs[0].shape)
    np.testing.assert_array_equal(read_one(request), array)


@given(any_array(list(TYPED)))
def test_typed_contents(item: tuple[str, np.ndarray]) -> None:
    datatype, array = item
    request = pb.ModelInferRequest()
    tensor = request.inputs.add(name="x", datatype=datatype, shape=array.shape)
    getattr(tensor.contents, TYPED[datatype]).extend(array.ravel().tolist())
    if array.size:
        result = read_one(request)
        assert result.dtype == array.dtype
        np.testing.assert_array_equal(result, array)


def make(datatype: str, shape: list[int], raw: list[bytes] | None = None, **contents: Any) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(raw_input_contents=raw or [])
    tensor = request.inputs.add(name="x", datatype=datatype, shape=shape)
    if contents:
        tensor.contents.CopyFrom(pb.InferTensorContents(**contents))
    return request


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (make("FLOAT", [1], [b"1234"]), "datatype 'FLOAT', expected one of BOOL"),
        (make("FP32", [2], [b"1234"]), r"4 bytes, expected 8 for FP32 \[2\]"),
        (make("FP32", [-1], [b"1234"]), r"shape \[-1\]"),
        (make("FP32", [2**31 - 1] * 8, [b"1234"]), "4 bytes, expected"),
        (make("FP32", [2**62, 4], [b"1234"]), "every size must be from 0 to"),
        (make("FP32", [0, 2**62, 2**62], [b""]), "every size must be from 0 to"),
        (make("FP32", [1] * 65, [b"1234"]), "65 dimensions, the limit is 8"),
        (make("UINT8", [10_000_000], uint_contents=[1]), "send them in raw_input_contents"),
        (make("FP32", [1], [b"1234", b"1"]), "2 entries for 1 input"),
        (make("FP32", [1], [b"1234"], fp32_contents=[1]), "both contents and raw_input_contents"),
        (make("FP32", [1], int_contents=[1]), "has int_contents, expected fp32_contents"),
        (make("FP32", [2], fp32_contents=[1]), "1 values, expected 2"),
        (make("FP32", [2]), "has no values"),
        (make("FP16", [1]), "must be sent in raw_input_contents"),
        (make("UINT8", [1], uint_contents=[256]), "value 256, which does not fit into UINT8"),
    ],
)
def test_bad_tensors(request_: pb.ModelInferRequest, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        read_one(request_)


def test_empty_contents_beside_raw_contents_are_ignored() -> None:
    request = make("FP32", [1], [b"1234"])
    request.inputs[0].contents.SetInParent()
    assert read_one(request).size == 1


def read_strings(request: pb.ModelInferRequest) -> list[bytes]:
    tensor = request.inputs[0]
    tensors.check_shape(tensor)
    return tensors.read_strings(tensor, tensors.raw_contents(request))


@given(st.lists(st.binary(max_size=40), max_size=6))
def test_strings_round_trip(elements: list[bytes]) -> None:
    response = pb.ModelInferResponse()
    raw = tensors.write_strings(response, "x", [len(elements)], elements)
    assert (response.outputs[0].datatype, list(response.outputs[0].shape)) == ("BYTES", [len(elements)])
    assert read_strings(make("BYTES", [len(elements)], [raw])) == elements
    if elements:
        assert read_strings(make("BYTES", [len(elements)], bytes_contents=elements)) == elements


@given(st.binary(max_size=40), st.integers(0, 4))
def test_strings_of_any_bytes_are_read_or_refused(raw: bytes, count: int) -> None:
    try:
        elements = read_strings(make("BYTES", [count], [raw]))
    except InvalidInput:
        return
    assert len(elements) == count
    assert sum(map(len, elements)) + 4 * count == len(raw)


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (make("BYTES", [1], [b"\1\0\0"]), "ends before the length of element 0"),
        (make("BYTES", [2], [b"\1\0\0\0x"]), "ends before the length of element 1"),
        (make("BYTES", [1], [b"\xff\xff\xff\xffx"]), "element 0 has 4294967295 bytes, but only 1 are left"),
        (make("BYTES", [1], [b"\1\0\0\0xyz"]), "2 bytes after its 1 elements"),
        (make("BYTES", [2], bytes_contents=[b"x"]), "1 values, expected 2"),
        (make("BYTES", [1], int_contents=[1]), "has int_contents, expected bytes_contents"),
    ],
)
def test_bad_strings(request_: pb.ModelInferRequest, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        read_strings(request_)


def test_outputs_are_described() -> None:
    response = pb.ModelInferResponse()
    assert tensors.write_output(response, "scores", np.zeros((2, 3), np.float32)) == bytes(24)
    assert tensors.write_strings(response, "names", [2], [b"a", b""]) == b"\1\0\0\0a\0\0\0\0"
    described = [(output.name, output.datatype, list(output.shape)) for output in response.outputs]
    assert described == [("scores", "FP32", [2, 3]), ("names", "BYTES", [2])]


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_strings_are_unpacked_as_they_were_packed(elements: list[bytes]) -> None:
    assert list(tensors.unpack_strings(tensors.pack_strings(elements))) == elements


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"\1\0\0\0a\x0b\0\0\0bc", "element 1 has 11 bytes, but only 2 are left"),
        (b"\1\0\0\0a\1\0\0\0bcd", "has 2 bytes after its 2 elements"),
        (b"\1\0\0\0a\1\0\0", "before the length of element 1"),
    ],
)
def test_strings_that_do_not_fit_are_told_with_the_name(raw: bytes, said: str) -> None:
    tensor = make("BYTES", [2], [raw]).inputs[0]
    with pytest.raises(InvalidInput, match=rf"'x' .*{said}"):
        tensors.read_strings(tensor, raw)


def test_errors_name_the_input() -> None:
    for datatype, shape in (("FP33", [1]), ("FP32", [1] * 9), ("FP32", [-1])):
        with pytest.raises(InvalidInput, match="'x'"):
            tensors.check_shape(make(datatype, shape).inputs[0])
    with pytest.raises(InvalidInput, match="'x'"):
        tensors.raw_contents(make("INT32", [1], [bytes(4)], int_contents=[1]))


def test_a_limited_number_of_values_is_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "_MAX_TYPED", 4)
    assert tensors.read(make("INT32", [4], int_contents=[1, 2, 3, 4]).inputs[0], None).tolist() == [1, 2, 3, 4]
    with pytest.raises(InvalidInput, match="limit is 4"):
        tensors.read(make("INT32", [5], int_contents=[1, 2, 3, 4, 5]).inputs[0], None)


def test_a_large_float_is_no_wrong_integer() -> None:
    assert tensors.read(make("FP32", [1], fp32_contents=[1e30]).inputs[0], None).tolist() == [np.float32(1e30)]
