"""The load generator as the benchmarks start it, on a real server."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from oip import SERVICE, tensor
from support import HANG_S, RunningServer


def run(*arguments: str | Path) -> str:
    command = [sys.executable, "-m", "cnnserve.tools.load", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=HANG_S).stdout


@pytest.mark.parametrize("connections", ["1", "2"])
def test_the_load_generator_counts_answers_and_failures(
    tiny_server: RunningServer, tmp_path: Path, connections: str
) -> None:
    (tmp_path / "good.bin").write_bytes(tensor().SerializeToString())
    (tmp_path / "bad.bin").write_bytes(tensor(model="nobody").SerializeToString())
    common = ["--method", f"{SERVICE}/ModelInfer", "--in-flight", "2", "--connections", connections]
    common += ["--warm-up-s", "0.1", "--seconds", "0.3", "--server-pid", str(tiny_server.process.pid)]
    good = json.loads(run(tiny_server.address, *common, "--body", tmp_path / "good.bin"))
    assert good["failed"] == 0
    assert good["requests"] > 0
    assert 0 < good["p50_ms"] <= good["p99_ms"]
    bodies = ["--body", tmp_path / "good.bin", "--body", tmp_path / "bad.bin"]
    both = json.loads(run(tiny_server.address, *common, *bodies))
    assert both["failed"] > 0
    assert both["requests"] > 0
