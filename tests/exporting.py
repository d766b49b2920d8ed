"""`cnnserve export` in processes that cost 0.1 s instead of 5: forked from one that has everything imported.

`python exporting.py SOCKET` is that one; `Exports` is the other side. The exports are real processes, so they can be
killed, can lose rights and can run into limits of the system.

Each export has a parent process of its own, which alone waits for the export and signals it, and the test has a socket
to this parent. So if a test gives up, it leaves no message that another test could read, and no number of a process.
"""

import functools
import gc
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

# All that an export imports, some of it late: it has to be in the process that forks.
from cnnserve_export import checkpoints, convert, images, pipeline  # noqa: F401
from cnnserve_export.architectures import ARCHITECTURES
from cnnserve_export.cli import export
from cnnserve_export.contract import DEFAULT_OPSET, contract
from support import HANG_S

NOBODY = 65534
# What changes a disk; reading does not matter.
_CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "fcntl.flock", "shutil.copyfile"}


@dataclass(frozen=True)
class Ended:
    """How an export ended: its exit code, negative for a signal, and what it wrote."""

    code: int
    err: str


@dataclass(frozen=True)
class Running:
    """One export at work."""

    parent: socket.socket
    log: Path

    def wait(self) -> Ended:
        """Waits until it ends or stops itself."""
        code = self.parent.recv(100)
        assert code, "the export's parent is gone"
        return Ended(int(code), self.log.read_text())

    def proceed(self) -> None:
        """Wakes one that stopped itself."""
        self.parent.send(b"proceed")


class Exports:
    """Starts exports."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started = 0
        self._sockets = ExitStack()
        self._forking, theirs = self._socket_pair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-W", "ignore", __file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )

    def start(self, *flags: str | Path, **limits: Any) -> Running:
        """Runs `cnnserve export lenet5 --max-batch-size 1` with these flags; for `limits` see `_export`.

        `whole=True`: with a conversion of its own.
        """
        self._started += 1
        log = self._folder / f"{self._started}.log"
        log.touch(mode=0o666)
        request = {"flags": [str(flag) for flag in flags], "log": str(log), **limits}
        parent, theirs = self._socket_pair()
        with theirs:
            socket.send_fds(self._forking, [json.dumps(request).encode()], [theirs.fileno()])
        return Running(parent, log)

    def run(self, *flags: str | Path, **limits: Any) -> Ended:
        """The same, to its end."""
        return self.start(*flags, **limits).wait()

    def close(self) -> None:
        """Ends the process that forks."""
        self._sockets.close()
        self._process.wait(HANG_S)

    def _socket_pair(self) -> tuple[socket.socket, socket.socket]:
        """One end that lives as long as this, and one to give away."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return self._sockets.enter_context(ours), theirs


@contextmanager
def exports(folder: Path) -> Iterator[Exports]:
    """Exports whose logs are kept in `folder`."""
    with closing(Exports(folder)) as started:
        yield started


def _serve(requests: socket.socket) -> None:
    # A pool of threads would not survive the fork.
    torch.set_num_threads(1)
    # Nobody waits for the parents of exports.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    trace, lenet5 = convert._trace, traced()
    data = lenet5.SerializeToString()
    # Or the garbage collector of each export would touch, and so copy, all that was imported.
    gc.freeze()
    while True:
        text, descriptors, _, _ = socket.recv_fds(requests, 2**16, 1)
        if not text:
            return
        request = json.loads(text)
        if "--precision" in request["flags"]:
            _draw_pictures()
        convert._trace = trace if request.pop("whole", False) else lambda *_: type(lenet5).FromString(data)
        with socket.socket(fileno=descriptors[0]) as test:
            if os.fork() == 0:
                _parent(request, test)


@functools.cache
def _draw_pictures() -> None:
    """What a lowered file is compared on, which takes seconds and touches no disk either."""
    for item in images.built_in().items:
        item.read()


def traced() -> Any:
    """LeNet-5 as torch's exporter gives it: that takes seconds and touches no disk, so it is done once for all."""
    lenet5 = ARCHITECTURES["lenet5"]
    network = convert._Served(checkpoints.build(lenet5, 10), contract(lenet5.preprocessing, "uint8", 10)).eval()
    return convert._trace(network, torch.zeros((2, 28, 28, 1), dtype=torch.uint8), DEFAULT_OPSET)


def _parent(request: dict[str, Any], test: socket.socket) -> NoReturn:
    """Runs an export in a child. Tells the test that it has stopped itself or ended; kills it if the test has gone."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            code = _export(**request)
        finally:
            os._exit(code)
    try:
        while (code := _change_of(pid)) == -signal.SIGSTOP:
            test.send(str(code).encode())
            # The export has only stopped, so its number is not free for another process.
            os.kill(pid, signal.SIGCONT if test.recv(100) else signal.SIGKILL)
        test.send(str(code).encode())
    finally:
        os._exit(0)


def _change_of(pid: int) -> int:
    """Waits until a child ends or stops: its exit code, or the negative number of the signal."""
    _, status = os.waitpid(pid, os.WUNTRACED)
    return -os.WSTOPSIG(status) if os.WIFSTOPPED(status) else os.waitstatus_to_exitcode(status)


def _export(
    flags: list[str],
    log: str,
    kill_at: int = 0,
    stop_at: int = 0,
    kill_after: float = 0.0,
    file_limit: int = 0,
    nobody: bool = False,
) -> int:
    """In the child. `kill_at`: dies before its n-th change of the disk; `stop_at`: stops there; `file_limit`: bytes.

    `kill_after`: dies after so many seconds of CPU time.
    """
    # One thread: two that busy-wait for each other take many times as long if the machine has other work.
    os.sched_setaffinity(0, {random.choice(sorted(os.sched_getaffinity(0)))})
    output = os.open(log, os.O_WRONLY)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if file_limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    if nobody and os.getuid() == 0:
        os.setuid(NOBODY)
    if kill_at or stop_at:
        _at_change(kill_at or stop_at, signal.SIGKILL if kill_at else signal.SIGSTOP)
    # Nothing handles the signal of this timer, so the signal kills.
    signal.setitimer(signal.ITIMER_PROF, kill_after)
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


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
