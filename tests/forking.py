"""The command `cnnserve` for tests that run many exports as a person does: each costs 0.1 s to start instead of 5.

`forking` makes a folder for PATH. The `cnnserve` in it hands `export` and `train-lenet` to a process that has imported
everything, `python forking.py SOCKET`, and that forks for each of them. All other commands go to the installed one.
"""

import contextlib
import gc
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import torch

import exporting
from cnnserve.cli import main
from cnnserve_export import train  # noqa: F401 - what `train-lenet` imports
from support import HANG_S

_MOST_BYTES = 2**18
# `-I -S`: it needs the standard library only.
_COMMAND = """#!{python} -IS
import json, os, socket, sys

if sys.argv[1:2] in (["export"], ["train-lenet"]):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as process:
        process.connect({address!r})
        request = json.dumps([sys.argv, os.getcwd(), dict(os.environ)]).encode()
        socket.send_fds(process, [request], [0, 1, 2])
        sys.exit(int(process.recv(100)))
os.execv({installed!r}, sys.argv)
"""


@contextlib.contextmanager
def forking(folder: Path) -> Iterator[Path]:
    """Yields the folder of the command."""
    address = str(folder / "socket")
    (commands := folder / "bin").mkdir()
    (command := commands / "cnnserve").write_text(
        _COMMAND.format(
            python=sys.executable, address=address, installed=str(Path(sys.executable).with_name("cnnserve"))
        )
    )
    command.chmod(0o755)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(address)
        listening.listen(16)
        process = subprocess.Popen(
            # `-P`: like an installed command, it looks for no modules beside its file.
            [sys.executable, "-P", __file__, str(listening.fileno())],
            pass_fds=[listening.fileno()],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
        )
    try:
        yield commands
    finally:
        process.terminate()
        process.wait(HANG_S)


def _next_command(listening: socket.socket) -> list[str]:
    """Forks for each command. Returns in the process that is to run one, with its arguments."""
    while True:
        connection, _ = listening.accept()
        if os.fork() == 0:
            break
        connection.close()
    listening.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    text, descriptors, _, _ = socket.recv_fds(connection, _MOST_BYTES, 3)
    if pid := os.fork():
        _watch(pid, connection)
    connection.close()
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.argv, directory, environment = json.loads(text)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    # One thread: two that busy-wait for each other take many times as long if the machine has other work.
    os.sched_setaffinity(0, {random.choice(sorted(os.sched_getaffinity(0)))})
    return sys.argv[1:]


def _watch(pid: int, connection: socket.socket) -> NoReturn:
    """Tells the command how its process ended. Kills the process if the command has gone."""
    if connection in select.select([os.pidfd_open(pid), connection], [], [])[0]:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(OSError):
        connection.send(str(os.waitstatus_to_exitcode(status) % 256).encode())
    os._exit(0)


def _prepare() -> None:
    """Imports what an export imports only while it converts. A pool of threads would not survive the fork."""
    torch.set_num_threads(1)
    exporting.traced()
    tests = Path(__file__).parent
    sys.path[:] = [path for path in sys.path if not Path(path).is_relative_to(tests)]
    # Or the garbage collector of each command would touch, and so copy, all that was imported.
    gc.freeze()
    # Nobody waits for the processes that watch.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)


def _run(arguments: list[str]) -> NoReturn:
    """Ends as a command does, but without the seconds in which Python frees all that was imported."""
    code = 1
    try:
        code = main(arguments)
    except SystemExit as end:
        # argparse's.
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _prepare()
    _run(_next_command(socket.socket(fileno=int(sys.argv[1]))))
