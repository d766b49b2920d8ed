"""What replicas on Ray Serve answer, without Ray: the same as a single server, call by call."""

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

import cnnserve.transports.ray_calls as ray_calls
import cnnserve_client.target
from cnnserve.access.guard import Guard
from cnnserve.api.methods import CLASSIFIER, INFERENCE, TIMEOUT, Kind
from cnnserve.api.status import Code
from cnnserve.assembly.loading import access_control, load_first
from cnnserve.assembly.parts import Parts, assemble
from cnnserve.config.settings import ServerConfig
from cnnserve.errors import InvalidInput, ModelNotReady
from cnnserve.transports.ray_calls import RPCS, Calls, Reply, Sent, StreamEnded, timeout_s, with_timeout
from cnnserve.transports.ray_routing import CLASSIFY_STREAM, INFER_STREAM, RULES, Routing
from cnnserve.wire import classifier_pb2 as c
from cnnserve.wire import open_inference_pb2 as o
from support import HANG_S, RunningServer, picture

LIMIT = 64 * 2**20
LEFT = c.Image(encoded=picture("left"))
REQUESTS: list[tuple[str, Message | bytes]] = [
    (f"{CLASSIFIER}/Classify", c.ClassifyRequest(model="tiny", images=[LEFT], top_k=2)),
    (f"{CLASSIFIER}/Classify", c.ClassifyRequest(model="tiny", images=[c.Image(encoded=b"no image")])),
    (f"{CLASSIFIER}/Classify", c.ClassifyRequest(model="tiny")),
    (f"{CLASSIFIER}/Classify", c.ClassifyRequest(model="tiny", images=[LEFT] * 9)),
    (f"{CLASSIFIER}/Classify", c.ClassifyRequest(model="tiny", version="9", images=[LEFT])),
    (f"{CLASSIFIER}/Classify", c.ClassifyRequest(model="plain", images=[LEFT])),
    (f"{CLASSIFIER}/Classify", b"\xff\xff"),
    (f"{CLASSIFIER}/GetModel", c.GetModelRequest(model="tiny")),
    (f"{CLASSIFIER}/LoadModel", c.LoadModelRequest(model="tiny")),
    (f"{INFERENCE}/ModelInfer", o.ModelInferRequest(model_name="tiny")),
    (f"{INFERENCE}/ModelMetadata", o.ModelMetadataRequest(name="tiny")),
    (f"{INFERENCE}/ModelReady", o.ModelReadyRequest(name="tiny")),
    (f"{INFERENCE}/ModelReady", o.ModelReadyRequest(name="nope")),
    ("grpc.health.v1.Health/Check", health_pb2.HealthCheckRequest(service="nope")),
    (f"{INFERENCE}/ServerLive", o.ServerLiveRequest()),
    (f"{INFERENCE}/ServerReady", o.ServerReadyRequest()),
    ("grpc.health.v1.Health/Check", b""),
]


class Replica:
    """The calls of one model, as a replica has them, and the number of the calls that it took."""

    def __init__(self, parts: Parts, guard: Guard | None) -> None:
        self.parts = parts
        self.calls = Calls(parts.methods, parts.max_message_bytes, guard)


async def replica(repository: Path, model: str, tokens: Path | None = None) -> Replica:
    config = ServerConfig(repository=None, model=(f"{model}={repository / model}",), cpu_threads=1, tokens_file=tokens)
    parts = assemble(config)
    await load_first(config, parts.registry)
    parts.health.started()
    return Replica(parts, access_control(config).guard)


@pytest.fixture
async def tiny(tiny_repository: Path) -> AsyncIterator[Replica]:
    made = await replica(tiny_repository, "tiny")
    yield made
    await asyncio.wait_for(made.parts.registry.close(), HANG_S)
    made.parts.decoders.close()


@pytest.fixture
async def routing(tiny_repository: Path) -> AsyncIterator[Routing]:
    """Two models in replicas of their own, and `gone`, whose replica has ended."""
    replicas = {name: await replica(tiny_repository, name) for name in ("tiny", "plain")}

    async def forward(model: str, name: str, data: bytes, sent: Sent) -> Reply:
        if model == "gone":
            raise ModelNotReady("model 'gone': its replica ended; try again later")
        calls = replicas[model].calls
        return await (calls.unary if RPCS[name] is Kind.UNARY else calls.one)(name, data, sent)

    yield Routing({name: name for name in (*replicas, "gone")}, forward, LIMIT)
    for one in replicas.values():
        await asyncio.wait_for(one.parts.registry.close(), HANG_S)
        one.parts.decoders.close()


@pytest.fixture
async def guarded(tiny_repository: Path, tmp_path: Path) -> AsyncIterator[tuple[Replica, str]]:
    """A replica that wants a token, and one that may classify."""
    token = "a-token-of-the-tests"
    (tmp_path / "tokens").write_text(f"web infer,read {hashlib.sha256(token.encode()).hexdigest()}\n")
    made = await replica(tiny_repository, "tiny", tmp_path / "tokens")
    yield made, token
    await asyncio.wait_for(made.parts.registry.close(), HANG_S)
    made.parts.decoders.close()


@pytest.mark.parametrize("data", [c.ClassifyRequest(model="nope").SerializeToString(), b"\xff\xff"])
async def test_who_may_not_call_learns_nothing_of_the_ingress(data: bytes, guarded: tuple[Replica, str]) -> None:
    made, token = guarded
    asked = []

    async def forward(model: str, name: str, data: bytes, sent: Sent) -> Reply:
        asked.append(model)
        return await (made.calls.unary if RPCS[name] is Kind.UNARY else made.calls.one)(name, data, sent)

    routing = Routing({"tiny": "tiny", "other": "other"}, forward, LIMIT, guarded=True)
    name = f"{CLASSIFIER}/Classify"
    reply = await routing.unary(name, data, Sent())
    assert outcome(reply) == (
        Code.UNAUTHENTICATED,
        "the call has no token; send the header 'authorization: Bearer TOKEN'",
    )
    with pytest.raises(StreamEnded) as ended:
        [answer async for answer in routing.stream(CLASSIFY_STREAM, messages(data), Sent())]
    assert ended.value.status.code is Code.UNAUTHENTICATED
    reply = await routing.unary(name, data, Sent((("authorization", f"Bearer {token}"),)))
    assert reply.status is not None
    assert reply.status.code in (Code.NOT_FOUND, Code.INVALID_ARGUMENT)
    # No model is loaded for any of this.
    assert {*asked} == {""}


async def test_a_model_is_held_only_for_those_who_may_call(guarded: tuple[Replica, str]) -> None:
    made, token = guarded
    held = []

    @contextlib.asynccontextmanager
    async def hold() -> AsyncIterator[None]:
        held.append("in")
        yield
        held.append("out")

    data = c.ClassifyRequest(model="tiny", images=[LEFT]).SerializeToString()
    stream = c.ClassifyStreamRequest(request=c.ClassifyRequest(model="tiny", images=[LEFT])).SerializeToString()
    allowed = Sent((("authorization", f"Bearer {token}"),))
    for sent, expected in ((Sent(), []), (allowed, ["in", "out"])):
        for answer, name, message in (
            (made.calls.unary, f"{CLASSIFIER}/Classify", data),
            (made.calls.one, CLASSIFY_STREAM, stream),
        ):
            held.clear()
            reply = await answer(name, message, sent, hold)
            assert (reply.status is None) == bool(expected)
            assert held == expected


def serialized(message: Message | bytes) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()


def single(server: RunningServer, name: str, data: bytes) -> tuple[int, str, bytes]:
    """Returns code, text and response of a server on its own."""
    with grpc.insecure_channel(server.address) as channel:
        try:
            return 0, "", channel.unary_unary(f"/{name}")(data, timeout=HANG_S)
        except grpc.RpcError as error:
            return error.code().value[0], error.details(), b""


def outcome(reply: Reply) -> tuple[int, str]:
    return (0, "") if reply.status is None else (reply.status.code, reply.status.message)


def without_times(data: bytes) -> c.ClassifyResponse:
    response = c.ClassifyResponse.FromString(data)
    response.ClearField("timings")
    return response


async def messages(*sent: bytes, then_wait: bool = False) -> AsyncIterator[bytes]:
    for one in sent:
        yield one
    if then_wait:
        await asyncio.Event().wait()


@pytest.mark.parametrize(("name", "request_"), REQUESTS, ids=[f"{name}-{i}" for i, (name, _) in enumerate(REQUESTS)])
async def test_replicas_and_ingress_answer_as_a_single_server(
    name: str, request_: Message | bytes, routing: Routing, tiny_server: RunningServer
) -> None:
    data = serialized(request_)
    code, text, response = await asyncio.to_thread(single, tiny_server, name, data)
    reply = await routing.unary(name, data, Sent())
    if name.endswith(("ServerReady", "Check")) and not code:
        # One of the three models has no replica: unlike a server, an application is ready only as a whole.
        assert (code, outcome(reply)) == (0, (0, ""))
        assert reply.data != response
    elif name.endswith("Classify") and not code:
        assert without_times(reply.data) == without_times(response)
    else:
        assert outcome(reply) == (code, text)
        assert reply.data == response


async def test_an_unknown_model_is_not_found_and_the_known_ones_are_named(routing: Routing) -> None:
    data = c.ClassifyRequest(model="nope", images=[LEFT]).SerializeToString()
    reply = await routing.unary(f"{CLASSIFIER}/Classify", data, Sent())
    assert outcome(reply) == (
        Code.NOT_FOUND,
        "model 'nope' is not in the model repository; it has gone, plain, tiny",
    )


async def test_lists_have_the_models_of_all_deployments(tiny_repository: Path, routing: Routing) -> None:
    places = {"tiny": "one", "plain": "two", "other": "two"}
    reply = await Routing(places, routing._forward, LIMIT).unary(f"{CLASSIFIER}/ListModels", b"", Sent())
    assert [model.name for model in c.ListModelsResponse.FromString(reply.data).models] == ["tiny", "plain"]


async def test_shared_memory_is_refused_because_it_does_not_reach_other_machines(tiny: Replica) -> None:
    reply = await tiny.calls.unary(f"{INFERENCE}/SystemSharedMemoryStatus", b"", Sent())
    assert reply.status is not None
    assert reply.status.code is Code.UNIMPLEMENTED
    assert "shared memory" in reply.status.message


def test_every_rpc_that_is_served_has_a_rule() -> None:
    assert {name for name in RPCS if "SharedMemory" not in name} == set(RULES)


@pytest.mark.parametrize("name", [CLASSIFY_STREAM, INFER_STREAM])
async def test_a_stream_through_the_ingress_reaches_every_model_and_errors_stay_with_their_message(
    name: str, routing: Routing
) -> None:
    def request(model: str) -> bytes:
        if name == INFER_STREAM:
            return o.ModelInferRequest(model_name=model, id=model).SerializeToString()
        inner = c.ClassifyRequest(model=model, images=[LEFT])
        return c.ClassifyStreamRequest(id=model, request=inner).SerializeToString()

    sent = messages(*map(request, ("tiny", "gone", "nope", "plain")))
    answers = [data async for data in routing.stream(name, sent, Sent())]
    if name == INFER_STREAM:
        infer = [o.ModelStreamInferResponse.FromString(data) for data in answers]
        assert [answer.infer_response.id for answer in infer] == ["tiny", "gone", "nope", "plain"]
        assert all(answer.error_message for answer in infer)
    else:
        found = {a.id: a for a in map(c.ClassifyStreamResponse.FromString, answers)}
        assert found["tiny"].response.model == "tiny"
        assert found["gone"].error.code == Code.UNAVAILABLE
        assert found["nope"].error.code == Code.NOT_FOUND
        assert found["plain"].error.code == Code.UNIMPLEMENTED


async def test_a_stream_ends_as_unavailable_after_its_time_and_loses_no_response(tiny: Replica) -> None:
    calls = Calls(tiny.parts.methods, LIMIT, stream_s=0.3)
    inner = c.ClassifyRequest(model="tiny", images=[LEFT])
    sent = messages(c.ClassifyStreamRequest(id="1", request=inner).SerializeToString(), then_wait=True)
    stream = calls.stream(CLASSIFY_STREAM, sent, Sent())
    assert c.ClassifyStreamResponse.FromString(await anext(stream)).response.model == "tiny"
    with pytest.raises(StreamEnded) as ended:
        await anext(stream)
    assert ended.value.status.code is Code.UNAVAILABLE


async def test_a_passed_deadline_costs_no_work(tiny: Replica) -> None:
    data = c.ClassifyRequest(model="tiny", images=[LEFT]).SerializeToString()
    before = tiny.parts.registry.get("tiny").statistics.executions
    reply = await tiny.calls.unary(f"{CLASSIFIER}/Classify", data, Sent(((TIMEOUT, "0"),)))
    assert reply.status is not None
    assert reply.status.code is Code.DEADLINE_EXCEEDED
    assert tiny.parts.registry.get("tiny").statistics.executions == before


@pytest.mark.parametrize("text", ["", "-1", "1.5", "soon", "١", "9" * 20, b"5"])
def test_a_timeout_that_is_no_number_of_milliseconds_is_refused(text: str | bytes) -> None:
    with pytest.raises(InvalidInput, match=TIMEOUT):
        timeout_s([(TIMEOUT, text)])


def test_the_ingress_hands_on_what_is_left_of_the_timeout() -> None:
    sent = Sent((("a", "b"), (TIMEOUT, "5000")), "ipv4:127.0.0.1:1")
    assert timeout_s(sent.metadata) == 5
    assert with_timeout(sent, 1.2345) == Sent((("a", "b"), (TIMEOUT, "1234")), "ipv4:127.0.0.1:1")
    assert with_timeout(sent, -1).metadata[-1] == (TIMEOUT, "0")
    assert with_timeout(Sent(), None) == Sent()


def test_client_and_server_name_the_timeout_alike() -> None:
    assert cnnserve_client.target._TIMEOUT == TIMEOUT


async def test_a_handlers_cancellation_is_told_and_one_from_outside_goes_on(tiny: Replica) -> None:
    async def endless() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    async def read() -> None:
        async for _ in tiny.calls.stream(CLASSIFY_STREAM, endless(), Sent()):
            pass

    task = asyncio.create_task(read())
    await asyncio.sleep(0)
    task.cancel()
    began = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - began < HANG_S
    assert ray_calls.is_own_fault(ray_calls._status(asyncio.CancelledError(), CLASSIFY_STREAM, None))
