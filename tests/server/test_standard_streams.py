"""A server whose standard streams are closed, or pipes that nobody reads."""

import contextlib
import fcntl
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cnnserve_client import Client, FailedPreconditionError
from support import HANG_S, picture


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
