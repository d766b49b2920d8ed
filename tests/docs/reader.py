"""Does what one page tells its reader to do: `python reader.py PAGE FOLDER MEMORY [COMMANDS]`.

FOLDER stands for the reader's checkout. A `cnnserve serve` runs until the page starts another one on the same port, or
ends. MEMORY is a folder that all pages share: an export that one page has run is copied for the next page that shows
it, since the same command gives the same files. Commands in the folder COMMANDS come before the installed ones.

A page that says "This page goes on where [Start](start.md) ends." begins in the folder that Start has left.

Exits with 1, and the place in the page, where something is not as the page says.
"""

import contextlib
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import blocks
import checks
import network
import outputs
from blocks import ROOT, Block, PageError

# What pages use of a checkout.
CHECKOUT = ("model_repo", "examples", "proto", "deploy", "constraints.txt")
# What takes longer has hung, however busy the machine is.
_LIMIT_S = 600.0
# A server that runs on. With one of these flags the command ends by itself.
_SERVE = re.compile(r"(?:\w+=\S+ )*cnnserve serve\b(?!.* --(?:dry-run|print-config|help)\b)")
_EXPORT = re.compile(r"cnnserve (?:export|train-lenet)\b")
_PORT = re.compile(r"--http-port[ =](\d+)")
# A port that answers without TLS.
_HEALTH_PORT = re.compile(r"--health-http-port[ =](\d+)")
_LOADING = ("LOADING", "BUILDING")
_START = ROOT / "docs" / "start.md"
_GOES_ON = "This page goes on where [Start](start.md) ends."


@dataclass
class Server:
    """A server in a terminal of its own."""

    process: subprocess.Popen[bytes]
    log: Path
    port: int

    def stop(self) -> None:
        """Ctrl-C. Raises `PageError` unless it ends well."""
        if self.process.poll() is None:
            # To all that the shell started, as a terminal does.
            os.killpg(self.process.pid, signal.SIGINT)
        if (code := self.process.wait(_LIMIT_S)) != 0:
            raise PageError(f"a server ended with exit code {code}:\n{self.log.read_text()}")


@dataclass
class Reader:
    """One page's reader, in their folder."""

    folder: Path
    memory: Path
    commands: Sequence[Path] = ()
    servers: dict[int, Server] = field(default_factory=dict)
    last_code: int = 0
    last_output: str = ""

    def follow(self, page: Path) -> None:
        """Runs every block in order. Raises `PageError`."""
        try:
            for block in blocks.read(page):
                try:
                    self._do(block)
                except PageError as error:
                    raise PageError(f"{block.place}: {error}") from error
            for server in self.servers.values():
                server.stop()
        finally:
            for server in self.servers.values():
                if server.process.poll() is None:
                    os.killpg(server.process.pid, signal.SIGKILL)

    def _do(self, block: Block) -> None:
        if block.not_run:
            checks.check_syntax(block)
        elif block.is_output:
            self._compare(list(block.lines), block)
        elif block.is_file:
            path = self.folder / block.title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            script = self.folder / ".block.py"
            script.write_text(block.text, encoding="utf-8")
            self._succeed(f"{sys.executable} {script}")
        elif block.language == "console":
            self._console(block)
        else:
            self._script(block)

    def _script(self, block: Block) -> None:
        lines = [line for line in block.lines if not line.startswith("#")]
        for line in filter(checks.INSTALL.match, lines):
            checks.check_install(line)
        rest = "\n".join(line for line in lines if not checks.INSTALL.match(line)).strip()
        # A server is the last command of its block: its reader goes on in another terminal.
        first, last = _split(rest)
        for command in filter(None, (first, last)):
            self._succeed(command)

    def _console(self, block: Block) -> None:
        shown = blocks.commands(block)
        for command, following in zip(shown, [*shown[1:], None], strict=True):
            if command.text == "echo $?":
                self.last_output = f"{self.last_code}\n"
            else:
                self._run(command.text)
                if self.last_code and (following is None or following.text != "echo $?"):
                    raise PageError(f"exit code {self.last_code} of: {command.text}\n{self.last_output}")
            self._compare(command.output, block)

    def _compare(self, shown: list[str], block: Block) -> None:
        if shown and (found := outputs.difference(shown, self.last_output, varies=block.varies)):
            raise PageError(f"the output differs:\n{found}")

    def _succeed(self, command: str) -> None:
        self._run(command)
        if self.last_code:
            raise PageError(f"exit code {self.last_code} of: {command}\n{self.last_output}")

    def _run(self, command: str) -> None:
        if _SERVE.match(command):
            self._serve(command)
        elif _EXPORT.match(command):
            self._export(command)
        else:
            self._execute(command)

    def _execute(self, command: str) -> None:
        finished = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=self.folder,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_LIMIT_S,
            check=False,
        )
        self.last_code, self.last_output = finished.returncode, finished.stdout.decode()

    def _export(self, command: str) -> None:
        kept = self.memory / self._key(command)
        if kept.is_dir():
            shutil.copytree(kept / "files", self.folder, dirs_exist_ok=True)
            self.last_code, self.last_output = 0, (kept / "output").read_text()
            return
        before = set(self.folder.rglob("*"))
        self._execute(command)
        if self.last_code == 0:
            for path in set(self.folder.rglob("*")) - before:
                if path.is_file():
                    copy = kept / "files" / path.relative_to(self.folder)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, copy)
            (kept / "output").write_text(self.last_output)

    def _key(self, command: str) -> str:
        """The same for commands that give the same: their text, the files they name, the versions there are."""
        digest = hashlib.sha256(command.encode())
        for word in shlex.split(command):
            for name in (word, f"{word.partition(':')[0].replace('.', '/')}.py"):
                if (self.folder / name).is_file():
                    digest.update((self.folder / name).read_bytes())
        digest.update("\n".join(sorted(path.name for path in self.folder.glob("models/*/*"))).encode())
        return digest.hexdigest()

    def _serve(self, command: str) -> None:
        port = int(match[1]) if (match := _PORT.search(command)) else 8000
        if port in self.servers:
            self.servers.pop(port).stop()
        log = self.folder / f".server-{port}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["bash", "-c", command],
                cwd=self.folder,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        server = Server(process, log, port)
        health = _HEALTH_PORT.search(command)
        self.last_code = _wait_until_settled(server, int(health[1]) if health else port)
        self.last_output = log.read_text()
        if self.last_code == 0:
            self.servers[port] = server

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CNNSERVE_")}
        return kept | {
            "PATH": os.pathsep.join([*map(str, self.commands), str(Path(sys.executable).parent), os.environ["PATH"]]),
            "HOME": str(self.folder),
            "COLUMNS": "100",
            "LC_ALL": "C.UTF-8",
            "PYTHONUNBUFFERED": "1",
        }


def _split(script: str) -> tuple[str, str]:
    """A script, and the `cnnserve serve` at its end; empty where there is none."""
    commands = re.split(r"(?<!\\)\n", script)
    if not _SERVE.match(commands[-1]):
        return script, ""
    return "\n".join(commands[:-1]), commands[-1]


def _wait_until_settled(server: Server, port: int) -> int:
    """Until a model serves, or each has said why it does not; the exit code of a server that does not even start."""
    end = time.monotonic() + _LIMIT_S
    while time.monotonic() < end and (code := server.process.poll()) is None:
        with contextlib.suppress(OSError):
            if _get(f"http://127.0.0.1:{port}/v2/health/ready") is not None:
                return 0
            index = _get(f"http://127.0.0.1:{port}/v2/repository/index", b"{}")
            if index and not any(version["state"] in _LOADING for version in index):
                return 0
        time.sleep(0.05)
    if code is None:
        os.killpg(server.process.pid, signal.SIGKILL)
        raise PageError(f"the server is not ready after {_LIMIT_S:g} s:\n{server.log.read_text()}")
    return code or 1


def _get(url: str, data: bytes | None = None) -> list[dict[str, str]] | None:
    """The answer's JSON; None where the status says no."""
    try:
        with urllib.request.urlopen(url, data, timeout=_LIMIT_S) as response:
            return list(json.loads(response.read() or b"[]"))
    except urllib.error.HTTPError:
        return None


def follow(page: Path, folder: Path, memory: Path, commands: Sequence[Path] = ()) -> None:
    """Makes the folder what the page takes for granted, and follows the page. Raises `PageError`."""
    if _GOES_ON in page.read_text(encoding="utf-8"):
        if not (memory / _START.stem).is_dir():
            (first := memory / "making").mkdir(exist_ok=True)
            follow(_START, first, memory, commands)
        shutil.copytree(memory / _START.stem, folder, dirs_exist_ok=True)
    else:
        for name in CHECKOUT:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
            copy(ROOT / name, folder / name)
    Reader(folder, memory, commands).follow(page)
    if page == _START and not (memory / _START.stem).is_dir():
        shutil.copytree(folder, memory / _START.stem)


def main() -> int:
    """Follows the page that the arguments name."""
    page, folder, memory, *commands = map(Path, sys.argv[1:])
    if not network.leave():
        print("no network of its own: the page uses this machine's ports 8000 and 8001")
    try:
        follow(page, folder, memory, commands)
    except PageError as error:
        print(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
