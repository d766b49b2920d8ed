"""Whose message is read next, when there is not room for all of them."""

import asyncio
from typing import ClassVar

import pytest

from cnnserve.process.admission import MemoryBudget
from cnnserve.process.pressure import MemoryPressure
from cnnserve.transports.core.receiving import Receiving, Turn
from support import until

MIB = 2**20
LARGEST = 8 * MIB


class Call:
    """A call that notes what becomes of it. `order` is shared by all calls of a test."""

    is_stream: ClassVar[bool] = False

    def __init__(self, receiving: Receiving, peer: str, order: list[str]) -> None:
        self.peer = peer
        self._receiving = receiving
        self._order = order
        self.reads = self.ended = False
        self.turn: Turn = receiving.ask(peer.encode(), self)

    def read(self, *, aside: bool) -> None:
        self.reads = True
        self._order.append(self.peer)

    def exhausted(self, _: str) -> None:
        self.ended = True
        self._receiving.done(self.turn, None)

    def cut_off(self) -> None:
        raise AssertionError("only clients that do not take their status are cut off")

    def arrived(self, size: int) -> None:
        """Its message has come."""
        self._receiving.done(self.turn, size)
        self._receiving.advance()


def receiving(budget: MemoryBudget) -> Receiving:
    return Receiving(budget, LARGEST, MemoryPressure(budget, resident=lambda: 100 * MIB))


async def test_connections_take_turns_when_one_message_fits_at_a_time() -> None:
    """A connection that has sent nothing is expected to send the largest message."""
    order: list[str] = []
    work = receiving(MemoryBudget(2 * LARGEST))
    calls = [Call(work, peer, order) for peer in ("a", "a", "a", "b", "b", "c")]
    for _ in calls:
        next(call for call in calls if call.reads and call.turn in work._reading).arrived(LARGEST)
    # The first one did not wait, so its connection is first in the queue once more.
    assert order == ["a", "a", "b", "c", "a", "b"]


async def test_a_connection_comes_between_silent_ones_that_never_run_out_of_calls() -> None:
    order: list[str] = []
    work = receiving(MemoryBudget(3 * 2 * LARGEST))
    for peer in "abcde":
        for _ in range(50):
            Call(work, peer, order)
    honest = Call(work, "honest", order)
    await until(lambda: honest.reads)
    # Each of the silent connections was asked at most twice before.
    assert max(order.count(peer) for peer in "abcde") <= 2


async def test_a_known_connection_of_small_messages_is_read_at_once() -> None:
    order: list[str] = []
    work = receiving(MemoryBudget(2 * 2 * LARGEST))
    known = Call(work, "known", order)
    known.arrived(1000)
    Call(work, "new", order)
    assert [Call(work, "known", order).reads for _ in range(50)] == [True] * 50


async def test_a_connection_that_waits_for_much_is_not_passed_for_ever() -> None:
    """Small messages that came later would fit, but then the large one might never do."""
    order: list[str] = []
    budget = MemoryBudget(2 * 2 * LARGEST)
    work = receiving(budget)
    Call(work, "large", order).arrived(LARGEST)
    Call(work, "small", order).arrived(1000)
    with budget.hold(2 * 2 * LARGEST - MIB):
        large = Call(work, "large", order)
        small = Call(work, "small", order)
        assert small.reads
        assert not large.reads
    work.advance()
    assert large.reads


@pytest.mark.parametrize("limit", [LARGEST, 2 * LARGEST])
async def test_memory_is_freed_for_a_call_that_waits(limit: int) -> None:
    """Before, one response that nobody read kept new connections out until the core closed its connection."""
    budget = MemoryBudget(limit)
    wanted: list[int] = []
    work = Receiving(budget, LARGEST, MemoryPressure(budget, resident=lambda: 100 * MIB), relieve=wanted.append)
    with budget.hold(MIB):
        new = Call(work, "new", [])
        await until(lambda: bool(wanted))
        assert not new.reads
    assert wanted[0] == limit
    await until(lambda: new.reads)


async def test_a_loop_that_is_behind_ends_no_call_as_silent() -> None:
    """The message may have come, and its event waits to be handled."""
    order: list[str] = []
    budget = MemoryBudget(2 * LARGEST)
    behind = True
    loop = asyncio.get_running_loop()
    started = loop.time()

    def caught_up() -> float:
        return started if behind else loop.time()

    work = Receiving(budget, LARGEST, MemoryPressure(budget, resident=lambda: 100 * MIB), caught_up=caught_up)
    silent = Call(work, "silent", order)
    Call(work, "waiting", order)
    # Longer than a silent call may take while another one waits.
    await asyncio.sleep(1.3)
    assert not silent.ended
    behind = False
    await until(lambda: silent.ended)
