"""Tensor data in JSON, and raw contents."""

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cnnserve.datatypes import NUMPY_TYPES
from cnnserve.errors import InvalidInput
from cnnserve.transports.http import infer_json
from cnnserve.transports.http.aside import Aside
from cnnserve.transports.http.tensor_json import json_from_raw, raw_from_json
from cnnserve.wire import open_inference_pb2 as pb


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


async def turns_during(work: Callable[..., Any], *arguments: Any) -> tuple[int, Any]:
    """Returns how many turns the event loop had while `work` ran, and what it returned."""
    # As the server has it.
    sys.setswitchinterval(0.0002)
    task = asyncio.create_task(Aside().run(2**30, work, *arguments))
    turns = 0
    while not task.done():
        await asyncio.sleep(0.001)
        turns += 1
    sys.setswitchinterval(0.005)
    return turns, await task


@pytest.mark.parametrize(("datatype", "value"), [("UINT8", "1"), ("FP32", "1e1"), ("INT32", "-12345678")])
async def test_large_json_leaves_the_event_loop_its_turns(datatype: str, value: str) -> None:
    count = 4_000_000 // (len(value) + 1)
    tensor = f'{{"name": "x", "datatype": "{datatype}", "shape": [{count}], "data": [{",".join([value] * count)}]}}'
    body = b'{"inputs": [%s]}' % tensor.encode()
    turns, (request, _) = await turns_during(infer_json.read_request, body, len(body), "m", "1")
    expected = np.full(count, float(value), NUMPY_TYPES[datatype])
    assert request.raw_input_contents == [expected.tobytes()]
    # On the event loop, it had none; on a thread with the library's own numbers, about five; alone, over 20.
    assert turns > 8


async def test_large_responses_leave_the_event_loop_its_turns() -> None:
    values = np.random.default_rng(0).random(250_000).astype(np.float32)
    response = pb.ModelInferResponse(model_name="m", model_version="1")
    response.outputs.add(name="y", datatype="FP32", shape=[250_000])
    response.raw_output_contents.append(values.tobytes())
    turns, written = await turns_during(infer_json.write_response, response, infer_json.Wanted())
    (output,) = json.loads(written.body)["outputs"]
    assert np.array_equal(np.array(output["data"], np.float32), values)
    assert turns > 8


async def test_one_large_json_is_parsed_at_a_time() -> None:
    """What is parsed takes many times its bytes."""
    at_once = most = 0

    def work() -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        json.loads("[" + "1," * 100_000 + "1]")
        at_once -= 1

    aside = Aside()
    await asyncio.gather(*(aside.run(2**30, work) for _ in range(10)))
    assert most == 1
