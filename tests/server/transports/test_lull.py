"""How long a transport that stops waits for requests that are still to come."""

import asyncio
import math

import pytest

from cnnserve.transports.lull import lull


async def test_a_request_that_comes_begins_the_wait_anew() -> None:
    loop = asyncio.get_running_loop()
    arrivals = [loop.time()]
    loop.call_later(0.05, lambda: arrivals.append(loop.time()))
    await lull(lambda: arrivals[-1], math.inf)
    assert len(arrivals) == 2
    assert loop.time() >= arrivals[-1] + 0.1


async def test_requests_without_end_are_waited_for_one_second() -> None:
    loop = asyncio.get_running_loop()
    started = loop.time()
    await lull(loop.time, math.inf)
    assert loop.time() >= started + 1


async def test_nothing_is_waited_for_after_the_deadline() -> None:
    loop = asyncio.get_running_loop()
    wait = lull(loop.time, loop.time())
    with pytest.raises(StopIteration):
        wait.send(None)
