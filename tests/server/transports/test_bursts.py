"""Many calls at once: none is CANCELLED, what is too much is refused with a time for the retry, others go on."""

import concurrent.futures
import shutil
from collections.abc import Iterator

import grpc
import pytest

from bursts import calls, open_streams, resets
from support import REPOSITORY, RunningServer, serving

# What a burst may end with.
ANSWERS = {"OK", "RESOURCE_EXHAUSTED"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    log = tmp_path_factory.mktemp("bursts") / "log"
    with serving(log, REPOSITORY, "--grpc-transport", "core") as server:
        yield server


@pytest.mark.parametrize(("channels", "each"), [(4, 250), (1, 1500), (30, 20)])
def test_calls_that_arrive_at_once(server: RunningServer, channels: int, each: int) -> None:
    counts = calls(server.address, channels, each)
    assert counts.total() == channels * each
    assert set(counts) <= ANSWERS


def test_a_full_queue_refuses_with_a_time_for_the_retry(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("full")
    config = 'name: "lenet5"\ndynamic_batching { max_queue_delay_microseconds: 100000 default_queue_policy { %s } }'
    model = folder / "models" / "lenet5"
    shutil.copytree(REPOSITORY / "lenet5", model)
    (model / "config.pbtxt").write_text(config % "max_queue_size: 32")
    with serving(folder / "log", folder / "models", "--grpc-transport", "core") as server:
        counts = calls(server.address, 4, 250)
    assert set(counts) == ANSWERS
    assert counts.total() == 1000


def test_streams_that_are_opened_and_left_alone(server: RunningServer) -> None:
    """They hold no memory, and no call of another connection waits for them for long."""
    with open_streams(server.address, 10, 100):
        for _ in range(3):
            assert calls(server.address, 1, 10) == {"OK": 10}
    assert calls(server.address, 1, 10) == {"OK": 10}


def test_resets(server: RunningServer) -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        attack = pool.submit(resets, server.address, 1000, 0.1)
        others = [calls(server.address, 1, 10) for _ in range(3)]
    assert attack.result() > 0
    assert others == [{"OK": 10}] * 3
    with grpc.insecure_channel(server.address) as channel:
        grpc.channel_ready_future(channel).result(60)
