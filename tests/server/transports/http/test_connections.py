"""Connections of the HTTP port: what one client may send, how long it may take, and who has to leave."""

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from certificates import Authority
from cnnserve.access.scopes import Scope
from cnnserve.access.tls import Tls
from cnnserve.api.methods import INFERENCE, CallContext, Method
from cnnserve.process.admission import MemoryBudget
from cnnserve.registry.snapshot import Snapshot
from cnnserve.transports import addresses
from cnnserve.transports.http.connections import ConnectionLimits
from cnnserve.transports.http.in_flight import InFlight, Limits
from cnnserve.transports.http.server import HttpServer, application
from cnnserve.wire import open_inference_pb2 as pb
from support import HANG_S, until

MIB = 2**20
LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
INFER = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\n"
CHUNKED = INFER + b"Transfer-Encoding: chunked\r\n\r\n"
# An infer request of one byte, as the raw body of a model with one input.
RUN = b'{"inputs": [{"name": "i", "datatype": "UINT8", "shape": [1], "data": [1]}]}'


def post(body: bytes, *headers: bytes) -> bytes:
    lines = b"".join(header + b"\r\n" for header in headers)
    return INFER + lines + b"Content-Length: %d\r\n\r\n" % len(body) + body


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


# The authority of the port's certificate, while a test runs over TLS.
_secured: list[Authority] = []


@pytest.fixture(autouse=True, params=["plain", "TLS"])
def secured(request: pytest.FixtureRequest, authority: Authority) -> Iterator[bool]:
    """Runs every test of this module in plain text and over TLS."""
    _secured.extend([authority] if request.param == "TLS" else [])
    yield bool(_secured)
    _secured.clear()


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        with contextlib.suppress(ConnectionError):
            await self.writer.drain()

    async def answer(self) -> tuple[int, dict[str, str], Any]:
        """Reads one response: its status, headers and JSON."""
        async with asyncio.timeout(HANG_S):
            head = await self.reader.readuntil(b"\r\n\r\n")
            first, *lines = head.decode().strip().split("\r\n")
            status = int(first.split()[1])
            if status == 100:
                return await self.answer()
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            return status, headers, json.loads(await self.reader.readexactly(int(headers["content-length"])))

    async def ask(self, data: bytes) -> tuple[int, dict[str, str], Any]:
        await self.send(data)
        return await self.answer()

    async def ended(self) -> bool:
        """Waits until the server closes the connection. Returns whether it sent nothing more."""
        async with asyncio.timeout(HANG_S):
            try:
                return await self.reader.read() == b""
            except ConnectionError:
                return True


class Port:
    """A running HTTP port, whose model responds with `outputs` bytes as soon as `go` is set."""

    def __init__(self, limits: ConnectionLimits, budget: MemoryBudget) -> None:
        self.budget = budget
        self.go = asyncio.Event()
        self.go.set()
        self.outputs = 1
        self.running = self.cancelled = 0
        methods = [
            Method(f"{INFERENCE}/ServerLive", pb.ServerLiveRequest, pb.ServerLiveResponse, self._live, Scope.OPEN),
            Method(f"{INFERENCE}/ModelInfer", pb.ModelInferRequest, pb.ModelInferResponse, self._infer, Scope.INFER),
        ]
        self.in_flight = InFlight()
        app = application(methods, Limits(budget, 4 * MIB), self.in_flight, Snapshot)
        socket = addresses.listen("127.0.0.1", 0, "http_port")
        self.number = socket.getsockname()[1]
        self._tls = _secured[0] if _secured else None
        tls = Tls(self._tls.issue("server")) if self._tls else None
        self._server = HttpServer(app, socket, budget, limits, tls)
        self._task = asyncio.create_task(self._server.serve())

    async def _live(self, _: pb.ServerLiveRequest, __: CallContext) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def _infer(self, request: pb.ModelInferRequest, _: CallContext) -> pb.ModelInferResponse:
        self.running += 1
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        response = pb.ModelInferResponse(model_name="m", model_version="1", id=request.id)
        response.outputs.add(name="o", datatype="UINT8", shape=[self.outputs])
        response.raw_output_contents.append(bytes(self.outputs))
        return response

    @property
    def connections(self) -> set[Any]:
        return self._server._server.server_state.connections

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        context = ssl.create_default_context(cafile=self._tls.root) if self._tls else None
        client = Client(*await asyncio.open_connection("127.0.0.1", self.number, limit=2**26, ssl=context))
        try:
            yield client
        finally:
            client.writer.close()

    async def close(self) -> None:
        self._server.stop()
        await self._task


@contextlib.asynccontextmanager
async def serving_port(budget_mib: int = 64, **limits: Any) -> AsyncIterator[Port]:
    port = Port(ConnectionLimits(**limits), MemoryBudget(budget_mib * MIB))
    try:
        async with port.client() as client:
            assert (await client.ask(LIVE))[0] == 200
        yield port
    finally:
        port.go.set()
        await port.close()


async def test_small_chunks_are_refused_before_they_hold_the_loop() -> None:
    async with serving_port() as port, port.client() as client:
        status, headers, value = await client.ask(CHUNKED + b"1\r\nx\r\n" * 200_000)
        assert (status, headers["connection"]) == (400, "close")
        assert "chunks" in value["error"]
        assert "send larger chunks" in value["error"]


async def test_large_chunks_and_a_few_small_ones_are_read() -> None:
    text = RUN[:-1] + b" " * 200_000 + b"}"
    pieces = [text[at : at + 8] for at in range(0, 1000, 8)] + [
        text[at : at + 1000] for at in range(1000, 201_000, 1000)
    ]
    body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces if piece) + b"0\r\n\r\n"
    async with serving_port() as port, port.client() as client:
        assert (await client.ask(CHUNKED + body))[0] == 200
        # The connection goes on.
        assert (await client.ask(LIVE))[0] == 200


async def test_many_small_chunks_leave_others_their_turns() -> None:
    """Each request is within its limit; together they are 48,000 chunks, 0.1 s of work in one turn of the loop."""
    body = b"".join(b"1\r\n%c\r\n" % byte for byte in RUN + b" " * 3900) + b"0\r\n\r\n"
    async with serving_port() as port, port.client() as client:
        assert (await client.ask(LIVE))[0] == 200
        await until(lambda: len(port.connections) == 1)
        (connection,) = port.connections
        # As the event loop hands it over.
        connection.data_received((CHUNKED + body) * 12)
        assert len(connection.pipeline) < 2
        assert [(await client.answer())[0] for _ in range(12)] == [200] * 12


async def test_lines_that_arrive_at_once_are_read_whole() -> None:
    text = json.dumps(json.loads(RUN) | {"parameters": {f"p{number}": number for number in range(20_000)}}, indent=1)
    async with serving_port() as port, port.client() as client:
        status, _, value = await client.ask(post(text.encode()) + LIVE)
        assert (status, value["model_name"]) == (200, "m")
        assert (await client.answer())[0] == 200


@pytest.mark.parametrize(
    "head",
    [
        b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
        b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 600_000,
        b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n" + b"X: a\r\n" * 101 + b"\r\n",
        b"GET /v2/health/live?" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        CHUNKED + b"0\r\n" + b"X: a\r\n" * 101 + b"\r\n",
    ],
    ids=["a long header", "a header without an end", "many headers", "a long path", "many trailers"],
)
async def test_heads_have_limits(head: bytes) -> None:
    async with serving_port() as port, port.client() as client:
        status, headers, value = await client.ask(head)
        assert (status, headers["connection"], set(value)) == (431, "close", {"error"})
        assert await client.ended()


async def test_heads_below_the_limits_are_read() -> None:
    lines = b"".join(b"X-%d: %s\r\n" % (number, b"a" * 600) for number in range(99))
    async with serving_port() as port, port.client() as client:
        assert (await client.ask(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n" + lines + b"\r\n"))[0] == 200


@pytest.mark.parametrize(
    "head",
    [
        b"nonsense\r\n\r\n",
        b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v2/health/live HTTP/1.1\r\n\r\n",
        b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        INFER + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        INFER + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        INFER + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n{}",
        INFER + b"Content-Length: -1\r\n\r\n{}",
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        CHUNKED + b"zz\r\n",
    ],
)
async def test_malformed_requests_get_json_and_the_end_of_the_connection(head: bytes) -> None:
    async with serving_port() as port, port.client() as client:
        status, headers, value = await client.ask(head)
        assert (status, headers["content-type"], headers["connection"]) == (400, "application/json", "close")
        assert set(value) == {"error"}
        assert await client.ended()


async def test_a_bad_request_after_a_good_one_costs_the_good_one_nothing() -> None:
    async with serving_port() as port, port.client() as client:
        port.go.clear()
        await client.send(post(RUN) + b"nonsense\r\n\r\n")
        await until(lambda: port.running == 1)
        port.go.set()
        status, headers, _ = await client.answer()
        assert (status, headers["connection"]) == (200, "close")
        assert await client.ended()


async def test_a_proposal_of_another_protocol_is_ignored() -> None:
    """As Java's client does it: with a body, and more requests after it."""
    upgrade = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk")
    async with serving_port() as port, port.client() as client:
        await client.send(post(RUN, *upgrade) * 3)
        assert [(await client.answer())[0] for _ in range(3)] == [200] * 3
        assert (await client.ask(LIVE.replace(b"\r\n\r\n", b"\r\n" + b"\r\n".join(upgrade) + b"\r\n\r\n")))[0] == 200


async def test_a_proposal_may_come_with_a_close() -> None:
    close = (b"Connection: Upgrade, close", b"Upgrade: h2c")
    async with serving_port() as port:
        async with port.client() as client:
            status, headers, _ = await client.ask(post(RUN, *close))
            assert (status, headers["connection"]) == (200, "close")
            assert await client.ended()
        async with port.client() as client:
            head = CHUNKED.removesuffix(b"\r\n") + b"\r\n".join(close) + b"\r\n\r\n"
            assert (await client.ask(head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(RUN), RUN)))[0] == 200


async def test_a_proposal_in_http_1_0_is_ignored() -> None:
    """There it has no meaning, and neither Host nor an open connection may be expected."""
    async with serving_port() as port, port.client() as client:
        status, headers, _ = await client.ask(
            b"GET /v2/health/live HTTP/1.0\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
        )
        assert (status, headers["connection"]) == (200, "close")
        assert await client.ended()


async def test_requests_sent_in_advance_are_answered_in_order_and_bounded() -> None:
    async with serving_port() as port, port.client() as client:
        port.go.clear()
        texts = [RUN[:-1] + b', "id": "%d"}' % number for number in range(200)]
        await client.send(b"".join(post(text) for text in texts))
        await until(lambda: port.running == 1)
        port.go.set()
        ids = []
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                ids.append((await client.answer())[2]["id"])
        assert ids == [str(number) for number in range(len(ids))]
        assert 32 <= len(ids) < 64


async def test_silent_and_slow_heads_end() -> None:
    async with serving_port(head_s=0.5, idle_s=0.5) as port, port.client() as silent, port.client() as slow:
        await slow.send(LIVE[:20])
        status, _, value = await slow.answer()
        assert (status, value) == (408, {"error": "the headers did not end within 0.5 s"})
        assert await slow.ended()
        assert await silent.ended()


async def test_a_request_that_is_at_work_is_not_idle() -> None:
    async with serving_port(head_s=0.1, idle_s=0.1) as port, port.client() as client, port.client() as silent:
        port.go.clear()
        await client.send(post(RUN))
        assert await silent.ended()
        port.go.set()
        assert (await client.answer())[0] == 200


async def test_the_newest_connections_that_wait_leave_first() -> None:
    async with serving_port(most=4) as port, contextlib.AsyncExitStack() as stack:
        clients = []
        for _ in range(4):
            clients.append(await stack.enter_async_context(port.client()))
            assert (await clients[-1].ask(LIVE))[0] == 200
        async with port.client() as another:
            assert (await another.ask(LIVE))[0] == 200
            assert await clients[3].ended()
            for client in clients[:3]:
                assert (await client.ask(LIVE))[0] == 200


async def test_if_all_connections_work_only_liveness_is_answered() -> None:
    async with serving_port(most=4) as port, contextlib.AsyncExitStack() as stack:
        port.go.clear()
        clients = [await stack.enter_async_context(port.client()) for _ in range(4)]
        for client in clients:
            await client.send(post(RUN))
        await until(lambda: port.running == 4)
        async with port.client() as another:
            status, headers, value = await another.ask(post(RUN))
            assert (status, headers["retry-after"], headers["connection"]) == (503, "1", "close")
            assert value == {"error": "the server has its 4 HTTP connections; try again later"}
        async with port.client() as probe:
            assert (await probe.ask(LIVE))[0] == 200
        port.go.set()
        assert [(await client.answer())[0] for client in clients] == [200] * 4


async def test_clients_that_hardly_send_make_room() -> None:
    """Before, as many as there may be connections locked everybody else out, each with one byte every 29 s."""
    async with serving_port(most=4, unread_if_full_s=0.5) as port, contextlib.AsyncExitStack() as stack:
        slow = [await stack.enter_async_context(port.client()) for _ in range(4)]
        for client in slow:
            await client.send(post(RUN)[:-10])

        async def served() -> bool:
            async with port.client() as another:
                return (await another.ask(post(RUN)))[0] == 200

        async with asyncio.timeout(HANG_S):
            while not await served():  # noqa: ASYNC110 - there is no event for it
                await asyncio.sleep(0.1)
        # Only as many as necessary have left.
        assert sum(not client.reader.at_eof() for client in slow) >= 2


async def test_a_client_that_closes_its_half_gets_its_answer(secured: bool) -> None:
    if secured:
        pytest.skip("TLS has no half-closed connections")
    async with serving_port() as port, port.client() as client:
        port.go.clear()
        await client.send(post(RUN))
        client.writer.write_eof()
        await until(lambda: port.running == 1)
        # Longer than it takes to notice that a client has left.
        await asyncio.sleep(0.2)
        assert not port.cancelled
        port.go.set()
        assert (await client.answer())[0] == 200
        assert await client.ended()


async def test_a_client_that_leaves_is_noticed() -> None:
    async with serving_port() as port:
        port.go.clear()
        async with port.client() as client:
            await client.send(post(RUN))
            await until(lambda: port.running == 1)
        await until(lambda: port.cancelled == 1)


async def test_a_client_that_still_sends_gets_its_refusal() -> None:
    """If the server closed at once, the client's system would drop the response with the bytes that follow."""
    async with serving_port() as port, port.client() as client:
        await client.send(INFER + b"Content-Length: 100000000\r\n\r\n" + bytes(300_000))
        await client.send(bytes(3_000_000))
        status, headers, _ = await client.answer()
        assert (status, headers["connection"]) == (413, "close")
        assert await client.ended()


async def test_a_response_that_nobody_reads_ends() -> None:
    async with serving_port(unread_s=0.5) as port, port.client() as client:
        port.outputs = 3 * MIB
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        text = RUN[:-1] + b', "parameters": {"binary_data_output": true}}'
        await client.send(post(text) * 8)
        await until(lambda: port.budget.total_bytes > 0)
        await until(lambda: port.budget.total_bytes == 0 and not port.in_flight.count)


STREAMS = st.lists(
    st.sampled_from(
        [
            LIVE,
            post(RUN),
            CHUNKED + b"%x\r\n%s\r\n0\r\n\r\n" % (len(RUN), RUN),
            CHUNKED + b"%x;a=b\r\n%s\r\n0\r\nX: y\r\n\r\n" % (len(RUN), RUN),
            post(RUN, b"Connection: Upgrade", b"Upgrade: h2c"),
            post(RUN, b"Connection: Upgrade, close", b"Upgrade: h2c"),
            post(RUN, b"Expect: 100-continue"),
            post(RUN, b"Connection: close"),
            LIVE.replace(b"1.1", b"1.0"),
            b"\r\n\r\n",
        ]
    ),
    min_size=1,
    max_size=4,
).map(b"".join)
CHANGES = st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 8), st.binary(max_size=8)), max_size=4)


def changed(stream: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    for at, removed, instead in changes:
        stream = stream[:at] + instead + stream[at + removed :]
    return stream


@settings(max_examples=5)
@given(
    st.lists(
        st.tuples(STREAMS, CHANGES, st.lists(st.integers(1, 200), max_size=6), st.booleans()), min_size=20, max_size=20
    )
)
def test_any_bytes_in_any_pieces_leave_a_server_that_answers(
    examples: list[tuple[bytes, list[tuple[int, int, bytes]], list[int], bool]],
) -> None:
    """Valid requests with bytes replaced, in pieces, some from clients that then close their half."""

    async def send(port: Port, stream: bytes, cuts: list[int], half_closes: bool) -> None:
        async with port.client() as client:
            for cut in cuts:
                await client.send(stream[:cut])
                stream = stream[cut:]
                await asyncio.sleep(0)
            await client.send(stream)
            if half_closes and client.writer.can_write_eof():
                with contextlib.suppress(OSError):
                    client.writer.write_eof()
                await client.reader.read()
            else:
                with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, TimeoutError):
                    async with asyncio.timeout(0.05):
                        await client.answer()

    async def run() -> None:
        async with serving_port(head_s=0.5, idle_s=0.5) as port:
            sending = [
                send(port, changed(stream, changes), cuts, half_closes)
                for stream, changes, cuts, half_closes in examples
            ]
            for outcome in await asyncio.gather(*sending, return_exceptions=True):
                assert outcome is None or isinstance(outcome, ConnectionError), outcome
            async with port.client() as client:
                assert (await client.ask(LIVE))[0] == 200
            await until(lambda: not port.in_flight.count and not port.budget.total_bytes)

    asyncio.run(run())
