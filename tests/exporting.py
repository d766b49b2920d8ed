"""`cnnserve export` in processes that cost 0.1 s instead of 5: forked from one that has everything imported.

`python exporting.py` is that one. It reads a request a line and answers a line, both JSON; `Exports` is the other side.
The exports are real processes, so they can be killed, can lose rights and can run into limits of the system.
"""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

# All that an export imports, some of it late: it has to be in the process that forks.
from cnnserve_export import checkpoints, convert, pipeline  # noqa: F401
from cnnserve_export.architectures import ARCHITECTURES
from cnnserve_export.cli import export
from cnnserve_export.contract import DEFAULT_OPSET, contract

NOBODY = 65534
# What changes a disk; reading does not matter.
_CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "fcntl.flock", "shutil.copyfile"}


@dataclass(frozen=True)
class Ended:
    """How an export ended: its exit code, negative for a signal, and what it wrote."""

    code: int
    err: str


@dataclass
class Running:
    """One export at work."""

    exports: "Exports"
    pid: int
    log: Path

    def kill(self) -> None:
        """SIGKILL; no effect on one that has ended."""
        # Only `wait` makes the number free for others.
        os.kill(self.pid, signal.SIGKILL)

    def proceed(self) -> None:
        """Wakes one that stopped itself."""
        os.kill(self.pid, signal.SIGCONT)

    def wait(self, *, stopped: bool = False) -> Ended:
        """Waits for its end, or until it has stopped itself."""
        code = self.exports.ask(wait=self.pid, stopped=stopped)
        return Ended(code, self.log.read_text())


class Exports:
    """Starts exports."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started = 0
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-W", "ignore", __file__]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def start(self, *flags: str | Path, **limits: Any) -> Running:
        """Runs `cnnserve export lenet5 --max-batch-size 1` with these flags; for `limits` see `_export`.

        `whole=True`: with a conversion of its own.
        """
        self._started += 1
        log = self._folder / f"{self._started}.log"
        log.touch(mode=0o666)
        pid = self.ask(flags=[str(flag) for flag in flags], log=str(log), **limits)
        return Running(self, pid, log)

    def run(self, *flags: str | Path, **limits: Any) -> Ended:
        """The same, to its end."""
        return self.start(*flags, **limits).wait()

    def ask(self, **request: Any) -> int:
        """One request, one number."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        """Ends the process that forks."""
        self._process.communicate(timeout=10)


@contextlib.contextmanager
def exports(folder: Path) -> Iterator[Exports]:
    """Exports whose logs are kept in `folder`."""
    started = Exports(folder)
    try:
        yield started
    finally:
        started.close()


def _serve() -> None:
    # A pool of threads would not survive the fork.
    torch.set_num_threads(1)
    trace, traced = convert._trace, _traced()
    data = traced.SerializeToString()
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = _wait(request["wait"], request["stopped"])
        else:
            convert._trace = trace if request.pop("whole", False) else lambda *_: type(traced).FromString(data)
            answer = _fork(request)
        print(answer, flush=True)


def _traced() -> Any:
    """LeNet-5 as torch's exporter gives it: that takes seconds and touches no disk, so it is done once for all."""
    lenet5 = ARCHITECTURES["lenet5"]
    network = convert._Served(checkpoints.build(lenet5, 10), contract(lenet5.preprocessing, "uint8", 10)).eval()
    return convert._trace(network, torch.zeros((2, 28, 28, 1), dtype=torch.uint8), DEFAULT_OPSET)


def _fork(request: dict[str, Any]) -> int:
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            code = _export(**request)
        finally:
            os._exit(code)
    return pid


def _export(
    flags: list[str], log: str, kill_at: int = 0, stop_at: int = 0, file_limit: int = 0, nobody: bool = False
) -> int:
    """In the child. `kill_at`: dies before its n-th change of the disk; `stop_at`: stops there; `file_limit`: bytes."""
    output = os.open(log, os.O_WRONLY)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if file_limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    if nobody and os.getuid() == 0:
        os.setuid(NOBODY)
    if kill_at or stop_at:
        _at_change(kill_at or stop_at, signal.SIGKILL if kill_at else signal.SIGSTOP)
    code = export(["lenet5", "--max-batch-size", "1", *flags])
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _at_change(number: int, sign: signal.Signals) -> None:
    changes = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal changes
        if event in _CHANGES or (event == "open" and ".publish-" in str(arguments[0])):
            changes += 1
            if changes == number:
                os.kill(os.getpid(), sign)

    sys.addaudithook(hook)


def _wait(pid: int, stopped: bool) -> int:
    _, status = os.waitpid(pid, os.WUNTRACED if stopped else 0)
    return -os.WSTOPSIG(status) if os.WIFSTOPPED(status) else os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    _serve()
