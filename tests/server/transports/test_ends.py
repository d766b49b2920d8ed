"""How calls on grpc's core end: whatever their client does, the server hears of it and forgets the call."""

import asyncio
from collections.abc import AsyncIterator, Callable

import grpc
import pytest
from google.protobuf.wrappers_pb2 import BytesValue

from cnnserve.access.scopes import Scope
from cnnserve.api.methods import CallContext, Method
from cnnserve.process import refusals
from cnnserve.process.admission import MemoryBudget
from cnnserve.process.pressure import MemoryPressure
from cnnserve.transports.core.server import CoreTransport
from support import HANG_S, until

Respond = Callable[[bytes | None, Exception | None], None]
MESSAGE = BytesValue(value=b"x").SerializeToString()


class Quick:
    """Answers a method by its bytes, at once or when a test says so."""

    def __init__(self) -> None:
        self.waiting: list[Respond] = []
        self.left = 0
        self.at_once = False

    def answer(self, data: bytes, _: int | None, respond: Respond) -> Callable[[], None]:
        if self.at_once:
            respond(data, None)
        else:
            self.waiting.append(respond)
        return self.leave

    def leave(self) -> None:
        self.left += 1

    async def handler(self, request: BytesValue, _: CallContext) -> BytesValue:
        return request


@pytest.fixture
def quick() -> Quick:
    return Quick()


@pytest.fixture
async def transport(quick: Quick) -> AsyncIterator[CoreTransport]:
    budget = MemoryBudget(2**24)
    method = Method("t.Test/Echo", BytesValue, BytesValue, quick.handler, Scope.OPEN, quick=quick.answer)
    made = CoreTransport([method], 2**20, budget, MemoryPressure(budget))
    yield made
    await made.stop(0.5)
    assert budget.total_bytes == 0
    assert not made._calls


@pytest.fixture
async def channel(transport: CoreTransport) -> AsyncIterator[grpc.aio.Channel]:
    port = transport.bind("127.0.0.1", 0)
    await transport.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as made:
        yield made


async def silent() -> AsyncIterator[bytes]:
    """Never sends a message."""
    await asyncio.sleep(HANG_S)
    yield b""


async def test_a_client_that_leaves_ends_a_request_that_waits(
    quick: Quick, transport: CoreTransport, channel: grpc.aio.Channel
) -> None:
    calls = [channel.unary_unary("/t.Test/Echo")(MESSAGE, timeout=HANG_S) for _ in range(3)]
    await until(lambda: len(quick.waiting) == 3)
    calls[1].cancel()
    await until(lambda: len(transport._calls) == 2)
    assert quick.left == 1
    for respond in quick.waiting:
        respond(MESSAGE, None)
    assert [await call for call in (calls[0], calls[2])] == [MESSAGE] * 2
    await until(lambda: not transport._calls)


async def test_a_deadline_that_passes_ends_a_request_that_waits(
    quick: Quick, transport: CoreTransport, channel: grpc.aio.Channel
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await channel.unary_unary("/t.Test/Echo")(MESSAGE, timeout=0.05)
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: quick.left == 1 and not transport._calls)


async def test_a_client_that_leaves_before_its_message_has_made_no_error(
    transport: CoreTransport, channel: grpc.aio.Channel
) -> None:
    before = dict(refusals.counts)
    calls = [channel.stream_unary("/t.Test/Echo")(silent(), timeout=HANG_S) for _ in range(10)]
    await until(lambda: len(transport._calls) == 10)
    for call in calls:
        call.cancel()
    await until(lambda: not transport._calls)
    assert refusals.counts == before


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_client_that_has_not_finished_gets_its_response(
    quick: Quick, transport: CoreTransport, channel: grpc.aio.Channel, *, at_once: bool
) -> None:
    """It could send more, but the call has one message, and ends with the response."""
    quick.at_once = at_once
    call = channel.stream_unary("/t.Test/Echo")()
    await call.write(MESSAGE)
    if not at_once:
        await until(lambda: bool(quick.waiting))
        # By now, the core was asked to tell of the end.
        await asyncio.sleep(0.03)
        quick.waiting[0](MESSAGE, None)
    assert await call == MESSAGE
    await until(lambda: not transport._calls)


async def test_a_call_of_an_unknown_method_is_forgotten(transport: CoreTransport, channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await channel.unary_unary("/t.Test/None")(MESSAGE, timeout=HANG_S)
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
    await until(lambda: not transport._calls)


async def test_responses_to_clients_that_have_left_harm_nobody(
    quick: Quick, transport: CoreTransport, channel: grpc.aio.Channel
) -> None:
    calls = [channel.unary_unary("/t.Test/Echo")(MESSAGE, timeout=HANG_S) for _ in range(20)]
    await until(lambda: len(quick.waiting) == 20)
    for call in calls:
        call.cancel()
    # Some of them before the core says that they have left.
    for respond in quick.waiting:
        respond(MESSAGE, None)
    await until(lambda: not transport._calls)
    quick.at_once = True
    assert await channel.unary_unary("/t.Test/Echo")(MESSAGE, timeout=HANG_S) == MESSAGE
