"""The decoding threads: whose work they take, and what ends."""

import asyncio
import threading
from collections.abc import Callable, Iterator

import pytest

from cnnserve.images.decoding_pool import DecodingPool, Share
from support import HANG_S

CAMERA, PHONE = "ipv4:10.0.0.1:1000", "ipv4:10.0.0.2:1000"


class Held:
    """A pool whose one thread is busy until `go`, and the order of what it did."""

    def __init__(self) -> None:
        self.pool = DecodingPool(1)
        self.done: list[str] = []
        self._busy, self._go = threading.Event(), threading.Event()
        self.pool.submit(("", "", ""), 1, self._wait)
        assert self._busy.wait(HANG_S)

    def _wait(self) -> None:
        self._busy.set()
        self._go.wait(HANG_S)

    def note(self, name: str) -> Callable[[], str]:
        def work() -> str:
            self.done.append(name)
            return name

        return work

    def go(self) -> None:
        self._go.set()


@pytest.fixture
def held() -> Iterator[Held]:
    held = Held()
    yield held
    held.go()
    held.pool.close()


async def test_a_small_image_passes_the_32_large_ones_of_another_client(held: Held) -> None:
    camera, phone = Share(held.pool, CAMERA), Share(held.pool, PHONE)
    large = [camera.run(held.note(f"large {number}"), 2e8) for number in range(32)]
    small = phone.run(held.note("small"), 1e6)
    held.go()
    assert await small == "small"
    await asyncio.gather(*large)
    assert held.done.index("small") == 0
    assert held.done[1:] == [f"large {number}" for number in range(32)]


async def test_connections_of_one_address_share_its_part(held: Held) -> None:
    shares = {
        name: Share(held.pool, client) for name, client in (("a", f"{CAMERA}1"), ("b", f"{CAMERA}2"), ("c", PHONE))
    }
    futures = [share.run(held.note(name), 1e6) for name, share in shares.items() for _ in range(8)]
    held.go()
    await asyncio.gather(*futures)
    assert sorted(held.done[:8]) == list("aabbcccc")


async def test_work_that_has_not_begun_can_be_dropped(held: Held) -> None:
    share, other = Share(held.pool, CAMERA), Share(held.pool, CAMERA)
    futures = [share.run(held.note("dropped"), 1e6) for _ in range(3)]
    kept = other.run(held.note("kept"), 1e6)
    share.drop()
    held.go()
    assert await kept == "kept"
    assert held.done == ["kept"]
    assert {type(outcome) for outcome in await asyncio.gather(*futures, return_exceptions=True)} == {
        asyncio.CancelledError
    }


async def test_a_future_that_was_cancelled_takes_no_thread(held: Held) -> None:
    share = Share(held.pool, CAMERA)
    first, second = share.run(held.note("first"), 1e6), share.run(held.note("second"), 1e6)
    first.cancel()
    # The pool hears of it in a turn of the event loop.
    await asyncio.sleep(0)
    held.go()
    assert await second == "second"
    assert held.done == ["second"]


async def test_an_error_reaches_the_caller_and_the_thread_goes_on() -> None:
    with DecodingPool(1) as pool:
        share = Share(pool, CAMERA)
        with pytest.raises(ZeroDivisionError):
            await share.run(lambda: 1 // 0, 1)
        assert await share.run(lambda: 5, 0) == 5


async def test_a_closed_pool_cancels_what_waits_and_what_comes(held: Held) -> None:
    share = Share(held.pool, CAMERA)
    waiting = share.run(held.note("waiting"), 1)
    held.pool.close()
    late = share.run(held.note("late"), 1)
    for future in (waiting, late):
        with pytest.raises(asyncio.CancelledError):
            await future
    assert held.done == []
