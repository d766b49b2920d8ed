"""Fixtures that the tests of several packages share."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from cnnserve.images.decoding_pool import DecodingPool
from cnnserve.registry.registry import Registry
from support import HANG_S, RunningServer, make_registry, serving, tiny_onnx, write_version

# The time of an example depends on the other work of the machine. pytest's own limit ends an example that hangs.
settings.register_profile("cnnserve", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("cnnserve")

# Under nohup, all processes that tests start would ignore SIGHUP, as a server under nohup should. And a shell without
# job control starts its background processes with SIGINT ignored.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def one_cpu() -> Iterator[None]:
    """Gives a module's tests one CPU, another one in each worker of xdist, so torch and ONNX Runtime use one thread.

    Threads that busy-wait for each other take many times as long on cores that other processes use.
    """
    before = os.sched_getaffinity(0)
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    os.sched_setaffinity(0, {sorted(before)[worker % len(before)]})
    yield
    os.sched_setaffinity(0, before)


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[Registry]:
    """An empty registry whose model repository is `tmp_path`. It is drained at the end."""
    with DecodingPool(1) as decoders:
        registry = make_registry(tmp_path, decoders)
        yield registry
        await asyncio.wait_for(registry.close(), HANG_S)


@pytest.fixture(scope="session")
def tiny_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models: `tiny` (good), `altered` (a file changed after export), `plain` (no manifest), `empty` (no version)."""
    root = tmp_path_factory.mktemp("repository")
    write_version(root / "tiny" / "1")
    altered = write_version(root / "altered" / "1")
    (altered / "labels.txt").write_text("dark\nleft\nblight\n")
    plain = root / "plain" / "1"
    plain.mkdir(parents=True)
    (plain / "model.onnx").write_bytes(tiny_onnx())
    (root / "empty").mkdir()
    return root


@pytest.fixture(scope="session")
def tiny_server(tiny_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server that serves `tiny_repository`."""
    with serving(tmp_path_factory.mktemp("log") / "server.log", tiny_repository) as server:
        yield server
