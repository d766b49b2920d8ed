"""Both clients retry calls if this is safe, within the timeout, on any available server."""

import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

import cnnserve_client as cc
from peer import Peer, running, two_models
from support import HANG_S


def failing(peer: Peer, method: str, times: int, code: grpc.StatusCode, pushback: str | None = None) -> None:
    """Makes the first `times` calls of a method end with a status."""
    script, left = peer.scripts[method], [times]

    def fail(request, context):
        if left[0]:
            left[0] -= 1
            if pushback is not None:
                context.set_trailing_metadata((("grpc-retry-pushback-ms", pushback),))
            context.abort(code, "not now")
        return script(request, context)

    peer.scripts[method] = fail


@pytest.mark.parametrize("method", ["classify", "list_models", "get_model"])
def test_an_unavailable_server_is_asked_again(peer, ask, method):
    arguments = {"classify": (b"x",), "list_models": (), "get_model": ("digits",)}[method]
    for name in ("Classify", "ListModels", "GetModel"):
        failing(peer, name, 2, grpc.StatusCode.UNAVAILABLE)
    ask(peer.address, method, *arguments, **({"model": "digits"} if method == "classify" else {}))
    assert len(peer.asked) == 3


@pytest.mark.parametrize("method", ["load_model", "unload_model"])
def test_a_change_is_never_sent_twice(peer, ask, method):
    failing(peer, "LoadModel", 1, grpc.StatusCode.UNAVAILABLE)
    failing(peer, "UnloadModel", 1, grpc.StatusCode.UNAVAILABLE)
    with pytest.raises(cc.UnavailableError, match="not now"):
        ask(peer.address, method, "digits")
    assert len(peer.asked) == 1


def test_a_full_queue_is_asked_again_after_the_time_it_named(peer, ask):
    failing(peer, "Classify", 3, grpc.StatusCode.RESOURCE_EXHAUSTED, "5")
    assert ask(peer.address, "classify", b"x", model="digits").results[0].ok
    assert len(peer.asked) == 4


@pytest.mark.parametrize("pushback", [None, "-1", "60000"])
def test_an_exhausted_server_is_asked_again_only_where_it_said_when_and_there_is_time(peer, ask, pushback):
    failing(peer, "Classify", 1, grpc.StatusCode.RESOURCE_EXHAUSTED, pushback)
    with pytest.raises(cc.ResourceExhaustedError):
        ask(peer.address, "classify", b"x", model="digits")
    assert len(peer.asked) == 1


def test_tries_share_the_calls_deadline(peer, ask):
    failing(peer, "Classify", 3, grpc.StatusCode.UNAVAILABLE)
    ask(peer.address, "classify", b"x", model="digits", timeout_s=5)
    # Within 3 %, grpc sends the time that it sent before.
    times = [asked.timeout_s for asked in peer.asked]
    assert times[0] - times[-1] > 0.1


def test_no_retries_where_none_are_wanted(peer, ask):
    failing(peer, "Classify", 1, grpc.StatusCode.UNAVAILABLE)
    with pytest.raises(cc.UnavailableError):
        ask(peer.address, "classify", b"x", model="digits", limits={"retries": 0})
    assert len(peer.asked) == 1


def test_a_restart_costs_nothing(ask):
    """Longer than the 1.5 s that four retries take."""
    peer = Peer()
    with running(peer):
        port = int(peer.address.rpartition(":")[2])
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(ask, peer.address, "classify", b"x", model="digits")
        time.sleep(2)
        with running(peer, port):
            assert call.result(HANG_S).results[0].ok


def test_addresses_take_turns_and_a_dead_one_costs_nothing():
    with running(Peer()) as one, running(Peer()) as other:
        addresses = [one.address, "127.0.0.1:1", other.address]
        with cc.Client(addresses, timeout_s=20) as client:
            assert repr(client) == f"Client({','.join(addresses)!r})"
            for _ in range(20):
                assert client.classify(b"x", model="digits").results[0].ok
        counts = Counter({"one": len(one.asked), "other": len(other.asked)})
        assert counts.total() == 20
        assert min(counts.values()) >= 8


async def test_addresses_take_turns_for_asyncio():
    with running(Peer()) as one, running(Peer()) as other:
        async with cc.AsyncClient(f"{one.address},127.0.0.1:1,{other.address}", timeout_s=20) as client:
            for _ in range(20):
                assert (await client.classify(b"x", model="digits")).results[0].ok
        assert min(len(one.asked), len(other.asked)) >= 8
        assert len(one.asked) + len(other.asked) == 20


@pytest.mark.parametrize("method", ["list_models", "get_model"])
def test_what_is_light_is_asked_of_another_where_one_is_silent(ask, method):
    with running(Peer()) as silent, running(Peer()) as other:
        for name in ("ListModels", "GetModel"):
            silent.hang(name)
        addresses = f"{silent.address},{other.address}"
        arguments = ("digits",) if method == "get_model" else ()
        assert ask(addresses, method, *arguments, timeout_s=4)


def test_a_change_of_one_of_several_servers_is_refused(peer, ask):
    with pytest.raises(cc.InvalidInputError, match="load_model changes one server, but this client has 2 addresses"):
        ask(f"{peer.address},{peer.address}", "load_model", "digits")
    assert peer.asked == []


def test_a_client_does_not_cross_a_fork(peer):
    code = (
        "import os, sys\n"
        "from cnnserve_client import Client\n"
        "client = Client(sys.argv[1])\n"
        "pid = os.fork()\n"
        "if not pid:\n"
        "    try:\n"
        "        client.list_models()\n"
        "    except RuntimeError as error:\n"
        "        print(error, flush=True)\n"
        "    os._exit(0)\n"
        "os.waitpid(pid, 0)\n"
        "print(len(client.list_models()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, peer.address], capture_output=True, text=True, timeout=HANG_S, check=True
    )
    assert done.stdout == "this Client was created before the process forked: create a Client in each process\n2\n"


def test_every_call_says_in_its_metadata_what_it_may_take(ask, peer):
    ask(peer.address, "list_models", timeout_s=5)
    assert 4000 < int(peer.metadata[0]["cnnserve-timeout-ms"]) <= 5000


@pytest.mark.parametrize(
    "text",
    [
        "The actor b3f6 is unavailable: The actor is temporarily unavailable: RpcError: Socket closed",
        "The actor died unexpectedly before finishing this task.",
        "The actor is dead because its node has died.",
    ],
)
def test_a_replica_of_ray_serve_that_is_lost_is_tried_again(ask, peer, text):
    def script(request, context):
        if len(peer.of("ListModels")) < 2:
            context.abort(grpc.StatusCode.INTERNAL, text)
        return two_models(request, context)

    peer.scripts["ListModels"] = script
    assert ask(peer.address, "list_models", timeout_s=20)
    assert len(peer.of("ListModels")) == 2
