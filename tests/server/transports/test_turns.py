"""How many gRPC events the event loop handles in one turn."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable

import grpc
import pytest
from google.protobuf.wrappers_pb2 import BytesValue

from cnnserve.access.scopes import Scope
from cnnserve.api.methods import CallContext, Method
from cnnserve.process.admission import MemoryBudget
from cnnserve.process.pressure import MemoryPressure
from cnnserve.transports.core.server import CoreTransport
from support import HANG_S

CALLS = 300


class Turns:
    """Counts the turns of the loop, and in which of them a call was answered."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.number = 0
        self.calls: Counter[int] = Counter()
        self._next()

    def _next(self) -> None:
        self.number += 1
        self._handle = self.loop.call_soon(self._next)

    def end(self) -> None:
        self._handle.cancel()

    def answer(
        self, data: bytes, _: int | None, respond: Callable[[bytes | None, Exception | None], None]
    ) -> Callable[[], None]:
        self.calls[self.number] += 1
        respond(data, None)
        return lambda: None

    async def handler(self, request: BytesValue, _: CallContext) -> BytesValue:
        return request


def block(seconds: float) -> None:
    """Keeps the event loop from its work."""
    time.sleep(seconds)


@pytest.mark.parametrize("shared", [False, True])
async def test_turns_are_short_while_others_need_theirs(*, shared: bool) -> None:
    turns = Turns()
    budget = MemoryBudget(2**24)
    method = Method("t.Test/Echo", BytesValue, BytesValue, turns.handler, Scope.OPEN, quick=turns.answer)
    transport = CoreTransport([method], 2**20, budget, MemoryPressure(budget), elsewhere=lambda: shared)
    port = transport.bind("127.0.0.1", 0)
    await transport.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
            echo = channel.unary_unary("/t.Test/Echo")
            await asyncio.to_thread(echo, b"first", timeout=HANG_S)
            futures = [echo.future(b"", timeout=HANG_S) for _ in range(CALLS)]
            # All have come when the loop begins to look.
            block(0.3)
            await asyncio.gather(*(asyncio.to_thread(future.result) for future in futures))
    finally:
        turns.end()
        await transport.stop(0.5)
    assert turns.calls.total() == CALLS + 1
    assert (max(turns.calls.values()) <= 16) == shared
