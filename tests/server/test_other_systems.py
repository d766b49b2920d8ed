"""What other systems lack is not needed: of macOS by the server, of Windows by the commands of the client.

The processes run here, without those modules, functions and constants of Python that the other system does not have.
"""

import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from cnnserve_client import Client
from support import HANG_S, REPOSITORY, RunningServer, picture

# macOS has no more open files for a process, although its hard limit is infinite.
_MACOS = """
import os, resource, socket, sys
del os.sched_getaffinity, os.memfd_create, socket.TCP_INFO
set_limit, get_limit = resource.setrlimit, resource.getrlimit
def setrlimit(what, limits):
    if not 0 <= limits[0] <= 10240:
        raise ValueError("current limit exceeds maximum limit")
    set_limit(what, (limits[0], get_limit(what)[1]))
resource.setrlimit = setrlimit
resource.getrlimit = lambda what: (256, resource.RLIM_INFINITY)
"""
_WINDOWS = """
import asyncio, os, shutil, signal, socket, subprocess, sys
sys.platform = "win32"
sys.modules.update(dict.fromkeys(["fcntl", "resource", "pwd", "grp", "termios"]))
for name in ("O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "sched_getaffinity", "memfd_create", "fork",
             "register_at_fork", "getuid", "geteuid", "sysconf"):
    delattr(os, name)
del signal.SIGHUP, signal.SIGPIPE, socket.AF_UNIX, socket.TCP_INFO
os.O_BINARY = 0
"""
_RUN = """
from cnnserve.cli import main
sys.exit(main())
"""


def command(system: str, *arguments: str | Path) -> list[str]:
    return [sys.executable, "-c", system + _RUN, *map(str, arguments)]


def run(system: str, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(system, *arguments), capture_output=True, text=True, timeout=HANG_S, check=False, cwd=REPOSITORY
    )


def test_the_server_on_macos(tiny_repository: Path, tmp_path: Path) -> None:
    ports = ("--grpc-port", "0", "--http-port", "0", "--max-connections", "9000")
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            command(_MACOS, "serve", "--repository", tiny_repository, *ports), stdout=log, stderr=log
        )
    server = RunningServer(process, tmp_path / "log")
    try:
        bound = server.wait_for(r"gRPC port (\d+), HTTP port (\d+)")
        server.wait_for("ready; models:")
        with Client(f"127.0.0.1:{bound[1]}", timeout_s=HANG_S) as client:
            assert client.classify(picture("left"), model="tiny").results[0].classes[0].label == "left"
        path = f"http://127.0.0.1:{bound[2]}/v1/models/tiny:classify"
        assert httpx.post(path, content=picture("left"), timeout=HANG_S).status_code == 200
        assert server.terminate() == 0
        assert "Traceback" not in server.log
    finally:
        process.kill()
        process.wait()


def test_the_client_on_windows(tiny_server: RunningServer, tmp_path: Path) -> None:
    (tmp_path / "left.png").write_bytes(picture("left"))
    output = tmp_path / "out.jsonl"
    address = ("--address", tiny_server.address)
    ended = run(_WINDOWS, "classify", tmp_path, *address, "--model", "tiny", "--output", output)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert '"label": "left"' in output.read_text()
    for arguments in (("models",), ("health",), ("labels", "tiny")):
        ended = run(_WINDOWS, *arguments, *address)
        assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("name", ["serve", "export", "import", "show", "doctor"])
def test_what_does_not_run_on_windows_says_so_in_one_line(name: str) -> None:
    ended = run(_WINDOWS, name, "--help")
    assert ended.returncode == 1
    assert ended.stderr == (
        f"cnnserve {name} does not run on Windows; run it in WSL (Windows Subsystem for Linux) or in a container\n"
    )
