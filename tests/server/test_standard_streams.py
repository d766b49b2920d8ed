"""A server whose standard streams are closed, or pipes that nobody reads."""

import contextlib
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cnnserve_client import Client, FailedPreconditionError
from support import HANG_S, REPOSITORY, picture


@contextlib.contextmanager
def started(*arguments: str | Path, **streams: object) -> "Iterator[subprocess.Popen[bytes]]":
    """Starts a server on free ports and kills it at the end."""
    command = [sys.executable, "-m", "cnnserve", "serve", "--grpc-port", "0", "--http-port", "0", *map(str, arguments)]
    with subprocess.Popen(command, **streams) as process:  # type: ignore[call-overload]
        try:
            yield process
        finally:
            process.kill()


def read_until(pipe: int, pattern: str) -> re.Match[str]:
    """Reads a pipe until its text has `pattern`, and not a byte after the line that brought it."""
    text = ""
    while True:
        data = os.read(pipe, 1)
        assert data, text
        text += data.decode()
        if data == b"\n" and (match := re.search(pattern, text)):
            return match


def test_standard_error_that_nobody_reads_stops_neither_calls_nor_the_end(tiny_repository: Path) -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    flags = ["--model-repository", tiny_repository, "--model-control-mode", "explicit", "--allow-model-control"]
    with started(*flags, "--load-model", "tiny", stderr=writer, stdout=writer) as server:
        os.close(writer)
        ports = read_until(reader, r"gRPC port (\d+), HTTP port (\d+)[^\x00]*: ready;")
        with Client(f"127.0.0.1:{ports[1]}", timeout_s=HANG_S) as client:
            # Each of these logs a line of at least 150 bytes.
            for _ in range(60):
                with pytest.raises(FailedPreconditionError):
                    client.load_model("altered")
            result = client.classify(picture("left"), model="tiny")
            assert result.results[0].classes[0].label == "left"
        server.send_signal(signal.SIGTERM)
        assert server.wait(HANG_S) == 0
    os.close(reader)


def test_a_server_with_closed_streams_serves(tiny_repository: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "cnnserve", "serve", "--repository", str(tiny_repository)]
    command += ["--grpc-port", str(port), "--http-port", "0"]
    with subprocess.Popen(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command]) as server:
        try:
            with Client(f"127.0.0.1:{port}", timeout_s=HANG_S) as client:
                assert client.classify(picture("left"), model="tiny").results[0].ok
            # No file and no connection of the server has the number of a standard stream.
            assert {Path(f"/proc/{server.pid}/fd/{number}").readlink() for number in range(3)} == {Path(os.devnull)}
            server.send_signal(signal.SIGTERM)
            assert server.wait(HANG_S) == 0
        finally:
            server.kill()


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_commands_with_closed_streams_end_well(closed: str) -> None:
    command = [sys.executable, "-m", "cnnserve", "show", str(REPOSITORY)]
    ended = subprocess.run(["sh", "-c", f'exec "$@" {closed}', "sh", *command], capture_output=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, b"")
