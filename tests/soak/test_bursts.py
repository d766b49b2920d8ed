"""The bursts of tests/server/transports/test_bursts.py at full size."""

import concurrent.futures
import os
from collections.abc import Iterator

import pytest

from bursts import calls, open_streams, resets
from support import REPOSITORY, RunningServer, serving

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(not os.environ.get("CNNSERVE_SOAK_MINUTES"), reason="set CNNSERVE_SOAK_MINUTES"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    log = tmp_path_factory.mktemp("bursts") / "log"
    with serving(log, REPOSITORY, "--grpc-transport", "core") as server:
        yield server


@pytest.mark.parametrize(("channels", "each"), [(4, 500), (8, 1000), (100, 50)])
def test_calls_that_arrive_at_once(server: RunningServer, channels: int, each: int) -> None:
    counts = calls(server.address, channels, each)
    assert counts.total() == channels * each
    assert set(counts) <= {"OK", "RESOURCE_EXHAUSTED"}


def test_ten_thousand_streams(server: RunningServer) -> None:
    with open_streams(server.address, 10, 1000):
        for _ in range(3):
            assert calls(server.address, 1, 10) == {"OK": 10}
    assert calls(server.address, 1, 10) == {"OK": 10}


def test_ten_thousand_resets_a_second(server: RunningServer) -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        attack = pool.submit(resets, server.address, 10_000, 1.0)
        while not attack.done():
            assert calls(server.address, 1, 10) == {"OK": 10}
    assert attack.result() > 0
    assert calls(server.address, 1, 10) == {"OK": 10}
