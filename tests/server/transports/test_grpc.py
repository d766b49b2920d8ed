"""What every gRPC transport does with a method table: the same tests for the core and for `grpc.aio`."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import BytesValue, Int64Value, StringValue
from grpc_reflection.v1alpha import reflection_pb2 as pb

from certificates import Authority
from cnnserve import errors
from cnnserve.access.scopes import Scope
from cnnserve.access.tls import Tls
from cnnserve.api.methods import CallContext, Kind, Method
from cnnserve.process.admission import MemoryBudget
from cnnserve.process.pressure import MemoryPressure
from cnnserve.transports.calls import PeerLimits
from cnnserve.transports.core.server import CoreTransport
from cnnserve.transports.grpcio import GrpcioTransport
from support import HANG_S, until


def core(
    methods: list[Method],
    max_message_bytes: int,
    peers: PeerLimits = PeerLimits(),  # noqa: B008 - it is frozen
    limit: int = 64 * 2**20,
) -> CoreTransport:
    budget = MemoryBudget(limit)
    return CoreTransport(methods, max_message_bytes, budget, MemoryPressure(budget), peers)


TRANSPORTS = {"core": core, "aio": GrpcioTransport}
MIB = 2**20
LIMIT = 4 * MIB
TEXTS = {
    "plain": "the value is 3",
    "non-ASCII": "Bär ☕ 100 %",
    "line ends": "one\ntwo\r\nthree\t\x01",
    "half a surrogate pair": "half \ud83d of it",
}


class Service:
    """Handlers that show what reached them."""

    def __init__(self) -> None:
        self.started = 0
        self.cancelled = 0
        self.contexts: list[CallContext] = []
        self.release = asyncio.Event()

    def methods(self) -> list[Method]:
        """The table."""

        def unary(name: str, request: type[Message], response: type[Message], handler: Any, **more: Any) -> Method:
            return Method(f"t.Test/{name}", request, response, handler, Scope.INFER, **more)

        return [
            unary("Echo", BytesValue, BytesValue, self.echo),
            unary("Wait", BytesValue, BytesValue, self.wait),
            unary("Always", BytesValue, BytesValue, self.echo, while_draining=True),
            unary("Fail", StringValue, BytesValue, self.fail),
            unary("Grow", Int64Value, BytesValue, self.grow),
            unary("CancelsItself", BytesValue, BytesValue, self.cancels_itself),
            unary("Count", Int64Value, Int64Value, self.count, kind=Kind.SERVER_STREAM),
            unary("Flood", Int64Value, BytesValue, self.flood, kind=Kind.SERVER_STREAM),
            unary("Chat", BytesValue, BytesValue, self.chat, kind=Kind.STREAM),
            unary("Early", BytesValue, BytesValue, self.early, kind=Kind.STREAM),
            unary("StreamFails", BytesValue, BytesValue, self.stream_fails, kind=Kind.STREAM),
        ]

    async def echo(self, request: BytesValue, context: CallContext) -> BytesValue:
        self.contexts.append(context)
        return request

    async def wait(self, request: BytesValue, context: CallContext) -> BytesValue:
        self.started += 1
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return request

    async def fail(self, request: StringValue, _: CallContext) -> BytesValue:
        match request.value:
            case "full":
                raise errors.QueueFull("no room", 250)
            case "stray":
                raise ValueError("a secret")
            case key:
                raise errors.InvalidInput(TEXTS[key])

    async def grow(self, request: Int64Value, _: CallContext) -> BytesValue:
        return BytesValue(value=bytes(request.value))

    async def cancels_itself(self, request: BytesValue, _: CallContext) -> BytesValue:
        raise asyncio.CancelledError

    async def count(self, request: Int64Value, _: CallContext) -> AsyncIterator[Int64Value]:
        for number in range(request.value):
            yield Int64Value(value=number)

    async def flood(self, request: Int64Value, _: CallContext) -> AsyncIterator[BytesValue]:
        try:
            while True:
                self.started += 1
                yield BytesValue(value=bytes(request.value))
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise

    async def chat(self, requests: AsyncIterator[BytesValue], context: CallContext) -> AsyncIterator[BytesValue]:
        self.contexts.append(context)
        try:
            async for request in requests:
                self.started += 1
                yield request
        finally:
            # With `grpc.aio` the requests of a client that leaves come to their end, and nothing is raised.
            self.cancelled += 1

    async def early(self, requests: AsyncIterator[BytesValue], _: CallContext) -> AsyncIterator[BytesValue]:
        yield await anext(requests)

    async def stream_fails(self, requests: AsyncIterator[BytesValue], _: CallContext) -> AsyncIterator[BytesValue]:
        yield await anext(requests)
        raise errors.QueueFull("no room", 250)


class Server:
    """A transport that listens, and a channel to it."""

    def __init__(self, kind: Any, transport: Any, service: Service, port: int, root: Path | None = None) -> None:
        self.kind = kind
        self.root = root
        self.transport = transport
        self.service = service
        self.address = f"127.0.0.1:{port}"

    def channel(self, **options: Any) -> grpc.aio.Channel:
        """A connection of its own; grpc shares one among channels that are equal."""
        pairs = [("grpc.use_local_subchannel_pool", 1), *((key.replace("__", "."), options[key]) for key in options)]
        if self.root is None:
            return grpc.aio.insecure_channel(self.address, options=pairs)
        return grpc.aio.secure_channel(self.address, self.credentials(), options=pairs)

    def credentials(self) -> grpc.ChannelCredentials:
        """For a server with TLS."""
        assert self.root is not None
        return grpc.ssl_channel_credentials(self.root.read_bytes())

    def blocking_channel(self) -> grpc.Channel:
        """A channel for threads."""
        if self.root is None:
            return grpc.insecure_channel(self.address)
        return grpc.secure_channel(self.address, self.credentials())


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(params=[*sorted(TRANSPORTS), *(f"{name} over TLS" for name in sorted(TRANSPORTS))])
async def server(request: pytest.FixtureRequest, authority: Authority) -> AsyncIterator[Server]:
    name, _, secure = request.param.partition(" over ")
    async with listening(TRANSPORTS[name], authority if secure else None) as server:
        yield server


@contextlib.asynccontextmanager
async def listening(kind: Any, authority: Authority | None = None, **options: Any) -> AsyncIterator[Server]:
    service = Service()
    transport = kind(service.methods(), LIMIT, **options)
    port = transport.bind("127.0.0.1", 0, Tls(authority.issue("server")) if authority else None)
    await transport.start()
    server = Server(kind, transport, service, port, authority.root if authority else None)
    try:
        yield server
    finally:
        service.release.set()
        await transport.stop(0.5)


@pytest.fixture
async def channel(server: Server) -> AsyncIterator[grpc.aio.Channel]:
    async with server.channel() as channel:
        yield channel


def unary(channel: grpc.aio.Channel, name: str, response: type[Message] = BytesValue) -> Callable[..., Any]:
    return channel.unary_unary(f"/t.Test/{name}", lambda m: m.SerializeToString(), response.FromString)


def bidi(channel: grpc.aio.Channel, name: str = "Chat") -> Callable[..., Any]:
    return channel.stream_stream(f"/t.Test/{name}", lambda m: m.SerializeToString(), BytesValue.FromString)


async def failure(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def test_a_unary_call_is_answered(channel: grpc.aio.Channel) -> None:
    for size in (0, 1, 1000, LIMIT - 10):
        data = bytes(size)
        assert (await unary(channel, "Echo")(BytesValue(value=data))).value == data


async def test_many_calls_at_once_are_all_answered(channel: grpc.aio.Channel) -> None:
    texts = [str(number).encode() for number in range(500)]
    answers = await asyncio.gather(*(unary(channel, "Echo")(BytesValue(value=text)) for text in texts))
    assert [answer.value for answer in answers] == texts


async def test_a_deadline_reaches_the_handler(server: Server, channel: grpc.aio.Channel) -> None:
    await unary(channel, "Echo")(BytesValue(), timeout=50)
    await unary(channel, "Echo")(BytesValue())
    with_deadline, without = server.service.contexts
    assert with_deadline.deadline_ns is not None
    assert without.deadline_ns is None


async def test_a_deadline_that_passes_cancels_the_handler(server: Server, channel: grpc.aio.Channel) -> None:
    timeout_s = 0.2
    # On a busy machine the deadline may pass before the handler has started.
    while not server.service.started:
        error = await failure(unary(channel, "Wait")(BytesValue(), timeout=timeout_s))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        timeout_s *= 2
    await until(lambda: server.service.cancelled == server.service.started)


async def test_a_client_that_leaves_cancels_the_handler(server: Server, channel: grpc.aio.Channel) -> None:
    call = unary(channel, "Wait")(BytesValue())
    await until(lambda: server.service.started == 1)
    call.cancel()
    await until(lambda: server.service.cancelled == 1)
    assert (await unary(channel, "Echo")(BytesValue(value=b"x"))).value == b"x"


@pytest.mark.parametrize("key", sorted(TEXTS))
async def test_a_status_carries_its_text_in_full(channel: grpc.aio.Channel, key: str) -> None:
    error = await failure(unary(channel, "Fail")(StringValue(value=key), timeout=HANG_S))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details() == TEXTS[key].encode(errors="replace").decode()


async def test_a_full_queue_names_its_pushback(channel: grpc.aio.Channel) -> None:
    error = await failure(unary(channel, "Fail")(StringValue(value="full")))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert ("grpc-retry-pushback-ms", "250") in list(error.trailing_metadata())


async def test_a_stray_exception_is_internal_with_a_fixed_text(channel: grpc.aio.Channel) -> None:
    error = await failure(unary(channel, "Fail")(StringValue(value="stray")))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in error.details()


async def test_a_handler_that_cancels_itself_ends_its_call(channel: grpc.aio.Channel) -> None:
    error = await failure(unary(channel, "CancelsItself")(BytesValue(), timeout=HANG_S))
    assert error.code() is grpc.StatusCode.INTERNAL


async def test_a_unary_call_without_a_message_is_told_so(channel: grpc.aio.Channel) -> None:
    call = channel.stream_stream("/t.Test/Echo", lambda m: m.SerializeToString(), BytesValue.FromString)(timeout=HANG_S)
    await call.done_writing()
    error = await failure(call.read())
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "no request message" in error.details()


async def test_bytes_that_are_no_message_are_the_callers_error(channel: grpc.aio.Channel) -> None:
    error = await failure(channel.unary_unary("/t.Test/Echo")(b"\xff\xff\xff"))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "3 bytes of the request are no google.protobuf.BytesValue" in error.details()


@pytest.mark.parametrize("name", ["/t.Test/Nothing", "/t.Other/Echo", "/"])
async def test_an_unknown_method_is_unimplemented(channel: grpc.aio.Channel, name: str) -> None:
    error = await failure(channel.unary_unary(name)(b"", timeout=HANG_S))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_request_that_is_too_large_is_refused(channel: grpc.aio.Channel) -> None:
    error = await failure(unary(channel, "Echo")(BytesValue(value=bytes(LIMIT + 1)), timeout=HANG_S))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await unary(channel, "Echo")(BytesValue(value=b"x"))).value == b"x"


async def test_a_response_that_is_too_large_is_the_callers_error(server: Server) -> None:
    async with server.channel(grpc__max_receive_message_length=-1) as channel:
        error = await failure(unary(channel, "Grow")(Int64Value(value=LIMIT + 1)))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert str(LIMIT) in error.details()


@pytest.mark.parametrize("algorithm", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_compressed_requests_are_read(channel: grpc.aio.Channel, algorithm: grpc.Compression) -> None:
    answer = await unary(channel, "Echo")(BytesValue(value=bytes(100_000)), compression=algorithm)
    assert answer.value == bytes(100_000)
    sent = BytesValue(value=bytes(100_000))
    call = channel.stream_stream("/t.Test/Chat", lambda m: m.SerializeToString(), BytesValue.FromString)
    stream = call(compression=algorithm)
    await stream.write(sent)
    assert await stream.read() == sent


@pytest.mark.parametrize("kind", sorted(TRANSPORTS))
async def test_responses_are_compressed_for_clients_that_accept_it(kind: str) -> None:
    async with listening(TRANSPORTS[kind], peers=PeerLimits(compression_level=2)) as server:
        # Bits of the algorithms that a client accepts: identity, deflate, gzip.
        for accepted in (0b111, 0b011, 0b001):
            async with server.channel(grpc__compression_enabled_algorithms_bitset=accepted) as channel:
                data = bytes(100_000)
                assert (await unary(channel, "Echo")(BytesValue(value=data))).value == data
                stream = bidi(channel)()
                await stream.write(BytesValue(value=data))
                assert (await stream.read()).value == data


@contextlib.asynccontextmanager
async def counting(server: Server) -> AsyncIterator[tuple[str, list[int]]]:
    """Yields the address of a relay to the server, and a list with the sizes of what the server sends."""
    sizes: list[int] = []

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, noted: list[int]) -> None:
        while data := await reader.read(65536):
            noted.append(len(data))
            writer.write(data)
        writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = server.address.split(":")
        from_server, to_server = await asyncio.open_connection(host, int(port))
        await asyncio.gather(copy(reader, to_server, []), copy(from_server, writer, sizes), return_exceptions=True)

    async with await asyncio.start_server(relay, "127.0.0.1", 0) as relaying:
        yield f"127.0.0.1:{relaying.sockets[0].getsockname()[1]}", sizes


@pytest.mark.parametrize("level", [0, 3])
@pytest.mark.parametrize("kind", sorted(TRANSPORTS))
async def test_a_compressed_response_is_small_on_the_wire(kind: str, level: int) -> None:
    async with (
        listening(TRANSPORTS[kind], peers=PeerLimits(compression_level=level)) as server,
        counting(server) as (address, sizes),
    ):
        async with grpc.aio.insecure_channel(address) as channel:
            assert len((await unary(channel, "Grow")(Int64Value(value=100_000))).value) == 100_000
        assert (sum(sizes) < 20_000) == (level > 0)


async def test_a_server_stream_keeps_its_order(channel: grpc.aio.Channel) -> None:
    call = channel.unary_stream("/t.Test/Count", lambda m: m.SerializeToString(), Int64Value.FromString)
    assert [item.value async for item in call(Int64Value(value=300))] == list(range(300))


async def test_a_server_stream_without_a_message_is_told_so(channel: grpc.aio.Channel) -> None:
    call = channel.stream_stream("/t.Test/Count", BytesValue.SerializeToString, Int64Value.FromString)(timeout=HANG_S)
    await call.done_writing()
    assert (await failure(call.read())).code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_client_that_does_not_read_stops_the_stream(server: Server, channel: grpc.aio.Channel) -> None:
    call = channel.unary_stream("/t.Test/Flood", lambda m: m.SerializeToString(), BytesValue.FromString)
    stream = call(Int64Value(value=100_000))
    await stream.read()
    seen = -1
    while seen != server.service.started:
        seen = server.service.started
        await asyncio.sleep(0.3)
    assert seen < 1000
    stream.cancel()
    await until(lambda: server.service.cancelled == 1)


async def test_a_stream_answers_each_message_in_order(channel: grpc.aio.Channel) -> None:
    async def messages() -> AsyncIterator[BytesValue]:
        for number in range(300):
            yield BytesValue(value=str(number).encode())

    answers = [int(answer.value) async for answer in bidi(channel)(messages())]
    assert answers == list(range(300))


async def test_a_stream_without_messages_ends_well(channel: grpc.aio.Channel) -> None:
    stream = bidi(channel)()
    await stream.done_writing()
    assert await stream.read() is grpc.aio.EOF
    assert await stream.code() is grpc.StatusCode.OK


async def test_a_handler_may_end_a_stream_early(channel: grpc.aio.Channel) -> None:
    stream = bidi(channel, "Early")()
    await stream.write(BytesValue(value=b"a"))
    assert (await stream.read()).value == b"a"
    assert await stream.read() is grpc.aio.EOF
    assert await stream.code() is grpc.StatusCode.OK


async def test_a_stream_that_fails_carries_status_and_trailers(channel: grpc.aio.Channel) -> None:
    stream = bidi(channel, "StreamFails")()
    await stream.write(BytesValue(value=b"a"))
    assert (await stream.read()).value == b"a"
    error = await failure(stream.read())
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert ("grpc-retry-pushback-ms", "250") in list(error.trailing_metadata())


async def test_a_client_that_leaves_ends_its_stream(server: Server, channel: grpc.aio.Channel) -> None:
    stream = bidi(channel)()
    await stream.write(BytesValue(value=b"a"))
    await stream.read()
    stream.cancel()
    await until(lambda: server.service.cancelled == 1)


async def test_a_streams_deadline_ends_it(server: Server, channel: grpc.aio.Channel) -> None:
    timeout_s = 0.2
    while not server.service.contexts:
        stream = bidi(channel)(timeout=timeout_s)
        error = await failure(stream.read())
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        timeout_s *= 2
    await until(lambda: server.service.cancelled == len(server.service.contexts))


async def test_bytes_that_are_no_message_end_a_stream(channel: grpc.aio.Channel) -> None:
    stream = channel.stream_stream("/t.Test/Chat")(timeout=HANG_S)
    await stream.write(b"\xff\xff")
    error = await failure(stream.read())
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_metadata_reaches_streams(server: Server, channel: grpc.aio.Channel) -> None:
    metadata = grpc.aio.Metadata(("x-text", "a"), ("x-bytes-bin", b"\x01"))
    stream = bidi(channel)(metadata=metadata)
    await stream.done_writing()
    await stream.read()
    (context,) = server.service.contexts
    assert context.metadata["x-text"] == "a"
    assert "x-bytes-bin" not in context.metadata


async def test_reflection_lists_and_describes_the_services(channel: grpc.aio.Channel) -> None:
    call = channel.stream_stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        pb.ServerReflectionRequest.SerializeToString,
        pb.ServerReflectionResponse.FromString,
    )
    stream = call()
    await stream.write(pb.ServerReflectionRequest(list_services=""))
    names = {service.name for service in (await stream.read()).list_services_response.service}
    assert names == {"t.Test", "grpc.reflection.v1alpha.ServerReflection"}
    method = "grpc.reflection.v1alpha.ServerReflection.ServerReflectionInfo"
    for symbol in ("google.protobuf.BytesValue", "grpc.reflection.v1alpha.ServerReflection", method):
        await stream.write(pb.ServerReflectionRequest(file_containing_symbol=symbol))
        assert (await stream.read()).file_descriptor_response.file_descriptor_proto
    for unknown in ("t.Test.Unary", f"{method}.no", ""):
        await stream.write(pb.ServerReflectionRequest(file_containing_symbol=unknown))
        assert (await stream.read()).error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
    await stream.done_writing()


async def test_a_port_that_is_taken_is_told(server: Server) -> None:
    other = server.kind(server.service.methods(), LIMIT)
    with pytest.raises(OSError, match="cannot listen on"):
        other.bind("127.0.0.1", int(server.address.rpartition(":")[2]))
    # Also one that never listened ends well.
    await other.stop(0)


async def test_stop_answers_every_accepted_call(server: Server, channel: grpc.aio.Channel) -> None:
    calls = [asyncio.ensure_future(unary(channel, "Wait")(BytesValue(value=b"x"))) for _ in range(64)]
    await until(lambda: server.service.started == 64)
    stopping = asyncio.create_task(server.transport.stop(30))
    assert (await unary(channel, "Always")(BytesValue(value=b"y"))).value == b"y"
    server.service.release.set()
    assert [answer.value for answer in await asyncio.gather(*calls)] == [b"x"] * 64
    await stopping


async def test_clients_that_go_on_calling_lose_nothing_while_it_stops(server: Server) -> None:
    """Every call of a loop ends with its answer or with UNAVAILABLE, which clients send again elsewhere."""
    ended: set[grpc.StatusCode] = set()

    async def loop() -> None:
        async with server.channel() as channel:
            while True:
                try:
                    await unary(channel, "Echo")(BytesValue(value=b"x"))
                except grpc.aio.AioRpcError as error:
                    ended.add(error.code())
                    return

    loops = [asyncio.create_task(loop()) for _ in range(8)]
    await until(lambda: len(server.service.contexts) > 100)
    await server.transport.stop(30)
    await asyncio.gather(*loops)
    assert ended <= {grpc.StatusCode.UNAVAILABLE}


async def test_calls_that_outlive_the_grace_are_unavailable_or_cancelled(
    server: Server, channel: grpc.aio.Channel
) -> None:
    waiting = asyncio.ensure_future(unary(channel, "Wait")(BytesValue()))
    stream = bidi(channel)()
    await stream.write(BytesValue(value=b"a"))
    await stream.read()
    await until(lambda: server.service.started == 2)
    await server.transport.stop(0.2)
    ends = {(await failure(waiting)).code(), (await failure(stream.read())).code()}
    kinds = {grpc.StatusCode.UNAVAILABLE}
    if isinstance(server.transport, GrpcioTransport):
        kinds.add(grpc.StatusCode.CANCELLED)
    assert ends <= kinds
    await until(lambda: server.service.cancelled == 2)


async def test_an_idle_reflection_stream_does_not_delay_the_end(server: Server, channel: grpc.aio.Channel) -> None:
    stream = channel.stream_stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        pb.ServerReflectionRequest.SerializeToString,
        pb.ServerReflectionResponse.FromString,
    )()
    await stream.write(pb.ServerReflectionRequest(list_services=""))
    assert await stream.read()
    await asyncio.wait_for(server.transport.stop(3600), HANG_S)
    assert await stream.read() == grpc.aio.EOF
    assert await stream.code() is grpc.StatusCode.OK


@pytest.mark.parametrize("kind", [core])
@pytest.mark.parametrize("name", ["Echo", "Count"])
async def test_a_message_that_does_not_come_ends_before_the_grace(kind: Any, name: str) -> None:
    async with listening(kind) as server, server.channel() as channel:
        waiting = asyncio.ensure_future(unary(channel, "Wait")(BytesValue(value=b"x")))
        await until(lambda: server.service.started == 1)
        silent = channel.stream_stream(f"/t.Test/{name}", None, None)()
        await until(lambda: len(server.transport._calls) == 2)
        stopping = asyncio.create_task(server.transport.stop(4))
        assert (await failure(silent.read())).code() is grpc.StatusCode.UNAVAILABLE
        # The other call still has time.
        server.service.release.set()
        assert (await waiting).value == b"x"
        await stopping


async def test_a_loop_that_is_blocked_for_a_while_loses_no_call(server: Server) -> None:
    """Two seconds of work on the loop, as a large JSON body made them, while clients come and go."""
    answers: list[bytes] = []

    def calls() -> None:
        with server.blocking_channel() as channel:
            call = channel.unary_unary("/t.Test/Echo", BytesValue.SerializeToString, BytesValue.FromString)
            answers.extend(call(BytesValue(value=b"x"), timeout=HANG_S).value for _ in range(20))

    thread = threading.Thread(target=calls)
    thread.start()
    await asyncio.sleep(0.01)
    time.sleep(1)  # noqa: ASYNC251 - blocking the loop is the point
    await asyncio.to_thread(thread.join)
    assert answers == [b"x"] * 20


@pytest.mark.parametrize("kind", [core])
async def test_fifty_servers_start_and_stop(kind: Any) -> None:
    before = threading.active_count()
    for _ in range(50):
        async with listening(kind) as server, server.channel() as channel:
            assert (await unary(channel, "Echo")(BytesValue(value=b"x"))).value == b"x"
    await until(lambda: threading.active_count() <= before + 2)


@contextlib.asynccontextmanager
async def open_port(kind: Any, peers: PeerLimits) -> AsyncIterator[int]:
    transport = kind(Service().methods(), LIMIT, peers)
    port = transport.bind("127.0.0.1", 0)
    await transport.start()
    try:
        yield port
    finally:
        await transport.stop(0.5)


async def pings_answered(port: int, pause_s: float) -> int:
    """Sends up to eight pings of HTTP/2 on an idle connection and returns how many were answered before its end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))
    answered = 0
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        for _ in range(8):
            writer.write(bytes((0, 0, 8, 6, 0, 0, 0, 0, 0)) + bytes(8))
            async with asyncio.timeout(HANG_S):
                while True:
                    head = await reader.readexactly(9)
                    await reader.readexactly(int.from_bytes(head[:3]))
                    if head[3:5] == bytes((6, 1)):
                        break
            answered += 1
            await asyncio.sleep(pause_s)
    writer.close()
    return answered


@pytest.mark.parametrize("kind", sorted(TRANSPORTS))
async def test_keepalive_pings_are_permitted_by_their_interval(kind: str) -> None:
    """grpc's own limit is one in 5 minutes, and without calls one in 2 hours."""
    async with open_port(TRANSPORTS[kind], PeerLimits(min_ping_interval_s=0.02)) as port:
        assert await pings_answered(port, 0.05) == 8
    async with open_port(TRANSPORTS[kind], PeerLimits()) as port:
        assert await pings_answered(port, 0.05) < 8


@pytest.mark.parametrize("kind", sorted(TRANSPORTS))
async def test_the_limit_of_metadata_is_sharp(kind: str) -> None:
    """With grpc's own limits, between 8 and 16 KiB, some calls are refused at random."""

    async def statuses(port: int, size: int) -> set[str]:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            calls = [unary(channel, "Echo")(BytesValue(), metadata=(("token", "x" * size),)) for _ in range(20)]
            return {(await call.code()).name for call in calls}

    async with open_port(TRANSPORTS[kind], PeerLimits()) as port:
        assert await statuses(port, 60_000) == {"OK"}
        assert await statuses(port, 70_000) == {"RESOURCE_EXHAUSTED"}
    async with open_port(TRANSPORTS[kind], PeerLimits(max_metadata_bytes=4096)) as port:
        assert await statuses(port, 3500) == {"OK"}
        assert await statuses(port, 4500) == {"RESOURCE_EXHAUSTED"}


@pytest.mark.parametrize("kind", sorted(TRANSPORTS))
async def test_a_connection_without_a_first_frame_ends(kind: str) -> None:
    async with open_port(TRANSPORTS[kind], PeerLimits(handshake_ms=300)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.timeout(HANG_S):
            with contextlib.suppress(ConnectionError):
                while await reader.read(1000):
                    pass
        writer.close()


@pytest.mark.parametrize("kind", sorted(TRANSPORTS))
async def test_a_unix_socket_serves_beside_the_port(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "grpc"
    # As a server leaves it that was killed.
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    transport = TRANSPORTS[kind](Service().methods(), LIMIT)
    transport.bind_unix(path)
    port = transport.bind("127.0.0.1", 0)
    await transport.start()
    for address in (f"unix:{path}", f"127.0.0.1:{port}"):
        async with grpc.aio.insecure_channel(address) as channel:
            assert (await unary(channel, "Echo")(BytesValue(value=b"a"), timeout=HANG_S)).value == b"a"
    other = TRANSPORTS[kind](Service().methods(), LIMIT)
    with pytest.raises(OSError, match="another server listens there"):
        other.bind_unix(path)
    await other.stop(0)
    await transport.stop(0.5)


@pytest.mark.parametrize("kind", sorted(TRANSPORTS))
async def test_the_path_of_a_unix_socket_may_be_too_long(kind: str, tmp_path: Path) -> None:
    transport = TRANSPORTS[kind](Service().methods(), LIMIT)
    with pytest.raises(OSError, match=r"\(grpc_socket\): the path has 108 bytes, expected at most 107"):
        transport.bind_unix(Path("/").joinpath("a" * 107))
    await transport.stop(0)


@pytest.mark.parametrize("kind", sorted(TRANSPORTS))
async def test_a_unix_socket_does_not_replace_a_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    transport = TRANSPORTS[kind](Service().methods(), LIMIT)
    with pytest.raises(OSError, match="the file is no socket"):
        transport.bind_unix(path)
    with pytest.raises(OSError, match=r"the folder .* does not exist"):
        transport.bind_unix(tmp_path / "none" / "grpc")
    await transport.stop(0)
    assert path.is_file()
