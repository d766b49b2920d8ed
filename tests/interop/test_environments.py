"""The wheel in new environments: `pip install cnnserve` installs few packages, and works with every allowed protobuf.

These tests install from the package index, so `make interop` runs them and `make test` does not.
"""

import csv
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cnnserve_export.digits import held_out_digits
from support import HANG_S, REPOSITORY, RunningServer, serving

pytestmark = [pytest.mark.interop]

ROOT = Path(__file__).parent.parent.parent
DIGITS = 64
# If a dependency gets a new dependency of its own, the test fails. Then check whether the package belongs here.
EXPECTED = {"cnnserve", "grpcio", "numpy", "protobuf", "typing_extensions"}

ASK = """
import asyncio, itertools, sys
from pathlib import Path
import cnnserve_client as cc

address, *files = sys.argv[1:]
with cc.Client(address) as client:
    one = client.classify(files[:32], model="lenet5", top_k=1).results
    many = list(client.classify_many(files, model="lenet5", top_k=1))
    assert client.is_healthy()
    assert client.get_model("lenet5").ready

async def again():
    async with cc.AsyncClient(address) as client:
        return [result async for result in client.classify_many(files, model="lenet5", top_k=1)]

labels = [[result.top.label for result in results] for results in (one, many, asyncio.run(again()))]
assert labels[0] == labels[1][:32] and labels[1] == labels[2]
print(*labels[1])
"""

TRITON = """
import sys
import numpy as np
import tritonclient.grpc as triton

client = triton.InferenceServerClient(sys.argv[1])
tensor = triton.InferInput("image", [1, 28, 28, 1], "UINT8")
tensor.set_data_from_numpy(np.zeros((1, 28, 28, 1), np.uint8))
rows = client.infer("lenet5", [tensor]).as_numpy("probabilities")
print(rows.shape, round(float(rows.sum()), 3))
"""


@dataclass(frozen=True)
class Environment:
    """A virtual environment with the wheel of cnnserve."""

    folder: Path
    install_s: float

    def run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        """Runs a program of this environment, without access to other environments."""
        alone = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "CNNSERVE_"))}
        words = [str(self.folder / "bin" / str(command[0])), *map(str, command[1:])]
        return subprocess.run(words, capture_output=True, text=True, timeout=HANG_S, check=True, env=alone)

    def packages(self) -> dict[str, str]:
        """Returns all installed packages except pip."""
        code = (
            "from importlib.metadata import distributions\n"
            "for d in distributions(): print(d.name.replace('-', '_').lower(), d.version)"
        )
        lines = self.run("python", "-c", code).stdout.splitlines()
        return {name: version for name, version in map(str.split, lines) if name not in ("pip", "setuptools")}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, capture_output=True, timeout=HANG_S, check=True)
    [wheel] = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with serving(tmp_path_factory.mktemp("log") / "server.log", REPOSITORY) as server:
        yield server


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    # In a folder of their own: the wheel in the environment beside them contains images too.
    folder = tmp_path / "digits"
    folder.mkdir()
    paths = []
    for number, (data, _) in enumerate(held_out_digits()[:DIGITS]):
        paths.append(folder / f"{number:03}.png")
        paths[-1].write_bytes(data)
    return paths


def install(folder: Path, wheel: Path, *beside: str) -> Environment:
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, capture_output=True, timeout=HANG_S)
    started = time.monotonic()
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*pip, str(wheel), *beside], capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    return Environment(folder, time.monotonic() - started)


@pytest.mark.parametrize(
    ("beside", "protobuf"),
    [
        (["protobuf==5.27.2", "grpcio==1.63.0", "numpy==1.26.*"], "5.27.2"),  # The oldest versions that are allowed.
        (["protobuf==5.29.*"], "5.29."),
        (["protobuf==6.*"], "6."),
        (["protobuf==7.*"], "7."),
        ([], ""),
        (["tritonclient[grpc]"], ""),
    ],
    ids=["oldest", "5.29", "6", "7", "newest", "tritonclient"],
)
def test_the_client_alone(
    beside: list[str], protobuf: str, wheel: Path, server: RunningServer, files: list[Path], tmp_path: Path
) -> None:
    environment = install(tmp_path / "venv", wheel, *beside)
    packages = environment.packages()
    print(f"installed in {environment.install_s:.1f} s: {packages}")
    assert packages["protobuf"].startswith(protobuf)
    if not beside:
        assert set(packages) <= EXPECTED
    # Warnings are errors, because protobuf warns if a future version will not run the generated code.
    answer = environment.run("python", "-W", "error", "-c", ASK, server.address, *files).stdout.split()
    digits = [str(value) for _, value in held_out_digits()[:DIGITS]]
    assert sum(map(str.__eq__, answer, digits)) >= DIGITS - 2
    folder = files[0].parent
    table = environment.run("cnnserve", "classify", folder, "--csv", "--top-k", "1", "--address", server.address)
    rows = list(csv.DictReader(table.stdout.splitlines()))
    assert [row["label"] for row in rows] == answer
    if beside == ["tritonclient[grpc]"]:
        assert environment.run("python", "-c", TRITON, server.address).stdout.split("\n")[0] == "(1, 10) 1.0"
