"""perf_analyzer, Triton's load generator: its table of the server adds up, and `cnnserve bench` agrees with it."""

import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from interop.environments import environment, slow, unavailable
from support import HANG_S, REPOSITORY, RunningServer, serving

pytestmark = slow
# The last wheel of tritonclient that contains the program. It does not contain two libraries that the program needs.
REQUIREMENTS = ("tritonclient==2.41.1", "nvidia-cuda-runtime-cu12==12.9.79", "numpy<2")
_TABLE = re.compile(
    r"Avg request latency: (\d+) usec \(overhead (\d+) usec \+ queue (\d+) usec \+ compute input (\d+) usec \+ "
    r"compute infer (\d+) usec \+ compute output (\d+) usec\)"
)


@pytest.fixture(scope="module")
def folder() -> Path:
    folder = environment("perf_analyzer", *REQUIREMENTS)
    if not list(folder.glob("usr/lib/*/libb64.so.0d")):
        if not shutil.which("apt-get"):
            unavailable("libb64", "there is no apt-get here")
        download = ["apt-get", "download", "libb64-0d"]
        done = subprocess.run(download, cwd=folder, capture_output=True, text=True, check=False, timeout=HANG_S)
        packages = list(folder.glob("libb64*.deb"))
        if not packages:
            unavailable("libb64", done.stderr)
        subprocess.run(["dpkg-deb", "-x", packages[0], folder], check=True, timeout=HANG_S)
    return folder


def analyze(folder: Path, server: RunningServer, *flags: str, model: str = "lenet5", interval_ms: int = 700) -> str:
    libraries = [
        *folder.glob("usr/lib/*/libb64.so.0d"),
        *folder.glob("lib/*/site-packages/nvidia/*/lib/libcudart.so.12"),
    ]
    environment = {**os.environ, "LD_LIBRARY_PATH": ":".join(str(path.parent) for path in libraries)}
    command = [folder / "bin" / "perf_analyzer", "-m", model, "-u", server.address, "-i", "grpc"]
    # The test does not need stable results, so every measurement window counts.
    settings = ["--measurement-interval", str(interval_ms), "--stability-percentage", "999", "--max-trials", "3"]
    done = subprocess.run(
        [*command, *settings, *flags], capture_output=True, text=True, check=False, timeout=HANG_S, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("flags", "batch", "concurrency"),
    [
        ((), 1, 1),
        (("-b", "4", "--async", "--concurrency-range", "8"), 4, 8),
        (("--streaming", "--concurrency-range", "4"), 1, 4),
        (("--shared-memory", "system", "--output-shared-memory-size", "4096"), 1, 1),
    ],
    ids=["sync", "async", "stream", "shared"],
)
def test_the_servers_table_adds_up(
    folder: Path, interop_server: RunningServer, flags: tuple[str, ...], batch: int, concurrency: int
) -> None:
    said = analyze(folder, interop_server, *flags)
    images, runs, requests = (
        int(re.findall(rf"{name}: (\d+)", said)[-1])
        for name in ("Inference count", "Execution count", "Successful request count")
    )
    assert images == batch * requests
    # A run is counted at its end, its requests at their responses. A measurement window may end in between.
    assert 0 < runs <= requests + concurrency
    client_us = int(re.findall(r"Avg latency: (\d+) usec", said)[-1])
    whole, *parts = map(int, _TABLE.findall(said)[-1])
    # Each time is rounded down.
    assert whole - len(parts) <= sum(parts) <= whole
    assert parts[4] > 0 or parts[3] > 0
    assert whole <= client_us


IN_FLIGHT = "4"
PAIRS = int(os.environ.get("CNNSERVE_PAIRS", "5"))
SECONDS = float(os.environ.get("CNNSERVE_PAIR_SECONDS", "5"))


def bench_rate(server: RunningServer, model: str) -> float:
    command = [sys.executable, "-m", "cnnserve", "bench", model, "--address", server.address, "--json", "--no-plain"]
    command += ["--concurrency", IN_FLIGHT, "--rate", "0", "--seconds", str(SECONDS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=HANG_S)
    assert done.returncode == 0, done.stderr
    (cell,) = json.loads(done.stdout)["cells"]
    assert cell["failed"] == {}
    return float(cell["requests_per_s"])


def ratios(folder: Path, server: RunningServer, model: str) -> list[float]:
    """Rate of bench / rate of perf_analyzer, in pairs whose order changes."""
    found = []
    for number in range(PAIRS):
        own = bench_rate(server, model) if number % 2 else 0.0
        flags = ("--async", "--concurrency-range", IN_FLIGHT)
        said = analyze(folder, server, *flags, model=model, interval_ms=int(SECONDS * 1000))
        own = own or bench_rate(server, model)
        found.append(own / float(re.findall(r"Throughput: ([\d.]+) infer/sec", said)[-1]))
    print(f"{model}: bench / perf_analyzer {statistics.median(found):.3f} of {[round(ratio, 3) for ratio in found]}")
    return found


@contextlib.contextmanager
def only_on(cores: set[int]) -> Iterator[None]:
    """Everything that is started inside runs on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def test_bench_agrees_where_the_server_is_the_limit(folder: Path, tmp_path: Path) -> None:
    """The server has one core and the generator the others, or the generator's own CPU time would be part of the rate.

    Needs a quiet machine. Fewer and shorter pairs (CNNSERVE_PAIRS, CNNSERVE_PAIR_SECONDS) only show the ratio.
    """
    root = tmp_path / "models"
    command = [sys.executable, "-m", "cnnserve", "export", "resnet18", "--repository", str(root)]
    subprocess.run(command, check=True, capture_output=True, timeout=HANG_S)
    first, *others = sorted(os.sched_getaffinity(0))
    with contextlib.ExitStack() as stack:
        with only_on({first}):
            server = stack.enter_context(serving(tmp_path / "log", root))
        with only_on(set(others) or {first}):
            found = ratios(folder, server, "resnet18")
    assert abs(statistics.median(found) - 1) <= (0.05 if PAIRS >= 5 and SECONDS >= 5 else 0.5)


def test_bench_is_no_slower_where_the_client_is_the_limit(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "models"
    root.mkdir()
    (root / "lenet5").symlink_to(REPOSITORY / "lenet5", target_is_directory=True)
    with serving(tmp_path / "log", root) as server:
        assert statistics.median(ratios(folder, server, "lenet5")) > 0.95
