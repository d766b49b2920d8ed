"""Memory does not grow: a short `bench/memory.py` with LeNet-5. CNNSERVE_SOAK_MINUTES sets its minutes."""

import os
import subprocess
import sys

import pytest

from support import REPOSITORY

MINUTES = float(os.environ.get("CNNSERVE_SOAK_MINUTES", "0"))
BENCH = REPOSITORY.parent / "bench" / "memory.py"


def run(*arguments: str) -> None:
    command = [sys.executable, str(BENCH), "--model", "lenet5", "--repository", str(REPOSITORY), "--no-result"]
    done = subprocess.run(
        [*command, *arguments], check=False, capture_output=True, text=True, timeout=600 + MINUTES * 60
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_reloads_leave_memory_where_it_was() -> None:
    run("--parts", "reload", "--reloads", "200" if MINUTES else "50")


def test_failed_loads_leak_nothing() -> None:
    run("--parts", "failed", "--failures", "50" if MINUTES else "30")


@pytest.mark.soak
@pytest.mark.skipif(not MINUTES, reason="takes minutes: set CNNSERVE_SOAK_MINUTES")
@pytest.mark.timeout(1200 + MINUTES * 60)
def test_mixed_batch_sizes_reach_a_plateau() -> None:
    run("--parts", "mixed", "--minutes", str(MINUTES))
