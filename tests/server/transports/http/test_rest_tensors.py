"""Tensor data in JSON, and raw contents."""

import numpy as np
import pytest

from cnnserve.datatypes import NUMPY_TYPES
from cnnserve.errors import InvalidInput
from cnnserve.transports.http.tensor_json import json_from_raw, raw_from_json


def test_values_that_json_lacks_are_refused() -> None:
    with pytest.raises(InvalidInput, match="NaN or infinity"):
        json_from_raw("y", "FP32", np.array([np.nan], np.float32).tobytes())
    with pytest.raises(InvalidInput, match="of type FP16 has no form"):
        json_from_raw("y", "FP16", b"")
    texts = raw_from_json("x", "BYTES", [2, 1], [["é"], [""]])
    assert texts == b"\x02\0\0\0\xc3\xa9\0\0\0\0"
    assert json_from_raw("x", "BYTES", texts) == ["é", ""]
    with pytest.raises(InvalidInput, match="not UTF-8"):
        json_from_raw("x", "BYTES", b"\x01\0\0\0\xff")


@pytest.mark.parametrize("datatype", ["BOOL", "UINT8", "INT16", "UINT64", "INT64", "FP32", "FP64"])
def test_every_type_comes_back_as_it_went(datatype: str) -> None:
    dtype = NUMPY_TYPES[datatype]
    limits = {"b": [True, False], "f": [0.5, -2.0]}
    values = limits.get(dtype.kind) or [int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)]
    raw = raw_from_json("x", datatype, [1, 2], [values])
    assert raw == np.array(values, dtype).tobytes()
    assert json_from_raw("x", datatype, raw) == values


@pytest.mark.parametrize("datatype", ["FP32", "FP64"])
def test_an_integer_beyond_every_float_is_refused(datatype: str) -> None:
    with pytest.raises(InvalidInput, match=f"input 'x' of type {datatype} has an integer that is too large"):
        raw_from_json("x", datatype, [2], [10**400, 1])
