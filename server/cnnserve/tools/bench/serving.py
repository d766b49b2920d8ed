"""A server for the time of a run: `bench --repository` starts it on free ports of this machine, and ends it."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

from cnnserve_client.errors import InvalidInputError

_START_S = 600.0
_STOP_S = 30.0
_PORTS = re.compile(r"gRPC port (\d+), HTTP port (\d+)")
_READY = re.compile(r"ready; models:")


@dataclass(frozen=True)
class Running:
    """A server that runs: its addresses and its processes."""

    grpc: str
    http: str
    pids: tuple[int, ...]


@contextlib.contextmanager
def serving(repository: Path, model: str) -> Iterator[Running]:
    """Yields a server of a model repository, with default settings; of one model if `model` is given.

    Raises `InvalidInputError` with the last lines of its log if it does not get ready.
    """
    command = [sys.executable, "-P", "-m", "cnnserve", "serve", "--model-repository", str(repository)]
    command += ["--host", "127.0.0.1", "--grpc-port", "0", "--http-port", "0"]
    command += ["--model-control-mode", "explicit", "--load-model", model] if model else []
    environment = {key: value for key, value in os.environ.items() if not key.startswith("CNNSERVE_")}
    with _in_order(), tempfile.NamedTemporaryFile(prefix="cnnserve-bench-log-") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)  # noqa: S603 - our own program
        try:
            ports = _wait(process, log, _PORTS)
            _wait(process, log, _READY)
            yield Running(f"127.0.0.1:{ports[1]}", f"127.0.0.1:{ports[2]}", (process.pid,))
        finally:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def _in_order() -> Iterator[None]:
    """If this process is told to end, its `finally` blocks run: otherwise the server would outlive it."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    kept = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    for number in kept:
        signal.signal(number, _end)
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _end(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)


def _wait(process: "subprocess.Popen[bytes]", log: IO[bytes], pattern: re.Pattern[str]) -> re.Match[str]:
    end = time.monotonic() + _START_S
    while time.monotonic() < end:
        has_ended = process.poll() is not None
        text = Path(log.name).read_text(errors="replace")
        if match := pattern.search(text):
            return match
        if has_ended:
            raise InvalidInputError("the server for --repository ended: " + " / ".join(text.splitlines()[-3:]))
        time.sleep(0.02)
    raise InvalidInputError(f"the server for --repository was not ready within {_START_S:g} s")
