"""Mutated files never crash the decoders, block them or make their memory grow.

A failure names the mutation. `python tests/fuzz.py --seed 0 --first NUMBER --count 1` repeats it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import fuzz

LONG = bool(os.environ.get("CNNSERVE_SOAK_MINUTES"))
SEED = int(os.environ.get("CNNSERVE_FUZZ_SEED", "0"))


def run(count: int, folder: Path) -> list[dict[str, Any]]:
    """Runs `count` mutations, in one process for each core."""
    cores = len(os.sched_getaffinity(0))
    started = []
    for part in range(cores):
        first, end = count * part // cores, count * (part + 1) // cores
        command = [sys.executable, fuzz.__file__, "--seed", str(SEED), "--progress", str(folder / str(part))]
        command += ["--first", str(first), "--count", str(end - first)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    results = []
    for part, process in enumerate(started):
        output, errors = process.communicate()
        at = (folder / str(part)).read_text()
        # The number of a signal: SIGSEGV, or SIGPROF from the watchdog.
        assert process.returncode == 0, f"mutation {at} of seed {SEED} ended with {process.returncode}: {errors!r}"
        results.append(json.loads(output))
        print(results[-1])
    return results


def check(results: list[dict[str, Any]], count: int) -> None:
    assert sum(sum(result["outcomes"].values()) for result in results) == count
    for result in results:
        assert not result["failures"]
        # Both outcomes must be frequent, otherwise the mutations test nothing.
        assert min(result["outcomes"][outcome] for outcome in ("picture", "refused")) > 0.1 * count / len(results)


def test_a_thousand_mutations(tmp_path: Path) -> None:
    check(run(1000, tmp_path), 1000)


@pytest.mark.soak
@pytest.mark.skipif(not LONG, reason="takes minutes: set CNNSERVE_SOAK_MINUTES")
@pytest.mark.timeout(3600)
def test_fifty_thousand_mutations(tmp_path: Path) -> None:
    results = run(50_000, tmp_path)
    check(results, 50_000)
    for result in results:
        assert result["slowest_cpu_s"] < 1
        assert result["growth_mib"] < 16
