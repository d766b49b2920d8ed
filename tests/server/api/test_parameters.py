"""Parameters of the Open Inference Protocol: of which type, and within which limits."""

from typing import Any

import pytest

from cnnserve.api import parameters
from cnnserve.errors import InvalidInput
from cnnserve.wire import open_inference_pb2 as o

P = o.InferParameter
VALUES: list[Any] = [
    P(bool_param=True),
    P(int64_param=3),
    P(uint64_param=3),
    P(string_param="3"),
    P(double_param=3.0),
    P(),
]


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        (P(int64_param=0), 0),
        (P(int64_param=7), 7),
        (P(uint64_param=0), 0),
        (P(uint64_param=2**64 - 1), 2**64 - 1),
    ],
)
def test_an_integer(parameter: o.InferParameter, value: int) -> None:
    assert parameters.integer({"x": parameter}, "x") == value
    assert parameters.integer({"x": parameter}, "y") == 0


@pytest.mark.parametrize("parameter", [*VALUES[:1], *VALUES[3:], P(int64_param=-1)])
def test_what_is_no_integer_of_0_or_more(parameter: o.InferParameter) -> None:
    with pytest.raises(InvalidInput, match=r"'x' .*int64_param"):
        parameters.integer({"x": parameter}, "x")


def test_an_integer_may_have_to_be_signed() -> None:
    assert parameters.integer({"x": P(int64_param=2)}, "x", kinds=("int64_param",)) == 2
    with pytest.raises(InvalidInput, match="uint64_param"):
        parameters.integer({"x": P(uint64_param=2)}, "x", kinds=("int64_param",))


def test_a_flag() -> None:
    assert parameters.flag({"x": P(bool_param=True)}, "x") is True
    assert parameters.flag({"x": P(bool_param=False)}, "x") is False
    assert parameters.flag({"x": P(bool_param=True)}, "y") is False
    for parameter in VALUES[1:]:
        with pytest.raises(InvalidInput, match=r"'x' .*bool_param"):
            parameters.flag({"x": parameter}, "x")


def test_a_text() -> None:
    assert parameters.text({"x": P(string_param="3")}, "x") == "3"
    for parameter in (*VALUES[:3], *VALUES[4:], P(string_param="")):
        with pytest.raises(InvalidInput, match=r"'x' .*string_param"):
            parameters.text({"x": parameter}, "x")


@pytest.mark.parametrize("name", ["priority", "triton", "my_triton_x", "Triton_x", parameters.FINAL_RESPONSE])
def test_names_that_a_client_may_use(name: str) -> None:
    parameters.check_reserved({"a": P(), name: P()})


@pytest.mark.parametrize("name", ["triton_", "triton_x", parameters.FINAL_RESPONSE + "_"])
def test_names_that_are_reserved(name: str) -> None:
    with pytest.raises(InvalidInput, match=name):
        parameters.check_reserved({"a": P(), name: P()})
