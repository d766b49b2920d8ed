"""perf_analyzer, Triton's load generator: it runs, and the times in its table of the server add up."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from interop.environments import environment, slow, unavailable
from support import HANG_S, RunningServer

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


def analyze(folder: Path, server: RunningServer, *flags: str) -> str:
    libraries = [
        *folder.glob("usr/lib/*/libb64.so.0d"),
        *folder.glob("lib/*/site-packages/nvidia/*/lib/libcudart.so.12"),
    ]
    environment = {**os.environ, "LD_LIBRARY_PATH": ":".join(str(path.parent) for path in libraries)}
    command = [folder / "bin" / "perf_analyzer", "-m", "lenet5", "-u", server.address, "-i", "grpc"]
    # The test does not need stable results, so every measurement window counts.
    settings = ["--measurement-interval", "700", "--stability-percentage", "999", "--max-trials", "3"]
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
