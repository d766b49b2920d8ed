"""An environment of its own for each peer, in a folder that git ignores."""

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

from peers.catalogue import Peer

_ROOT = Path(__file__).resolve().parents[2]
_FOLDER = _ROOT / ".venv-peers"
_TIMEOUT_S = 900.0
_VERSIONS = "import importlib.metadata as m, json, sys; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"


def python(peer: Peer) -> Path:
    """Returns the Python of a peer's environment."""
    return _FOLDER / peer.name / "bin" / "python"


def missing(peer: Peer) -> str:
    """Returns why the peer cannot run, "" if its environment is complete."""
    if _installed(peer).is_file() and _installed(peer).read_text() == _wanted(peer):
        return ""
    failed = _failed(peer)
    if failed.is_file():
        return failed.read_text()
    return "not installed: run `python bench/peers/run.py --install`"


def install(peer: Peer) -> str:
    """Makes the environment of a peer, unless it is complete. Returns why it could not, "" if it could."""
    if not missing(peer):
        return ""
    _FOLDER.mkdir(exist_ok=True)
    _failed(peer).unlink(missing_ok=True)
    commands = [
        [sys.executable, "-m", "venv", "--clear", str(_FOLDER / peer.name)],
        [str(python(peer)), "-m", "pip", "install", "--quiet", *_wanted(peer).split()],
    ]
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        if done.returncode:
            lines = [line for line in done.stderr.strip().splitlines() if line.startswith("ERROR")]
            reason = "pip could not install it: " + (lines or ["no reason given"])[-1].removeprefix("ERROR: ")
            _failed(peer).write_text(reason)
            return reason
    _installed(peer).write_text(_wanted(peer))
    return ""


def versions(peer: Peer) -> dict[str, str]:
    """Returns the versions of what counts in a peer's environment."""
    names = [package.partition("==")[0].partition("[")[0] for package in _wanted(peer).split()]
    done = subprocess.run(
        [str(python(peer)), "-c", _VERSIONS, *names], stdout=subprocess.PIPE, text=True, timeout=60, check=True
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


def _wanted(peer: Peer) -> str:
    # The version of the environment that measures, so that all run the same one.
    runtime = importlib.metadata.version("onnxruntime")
    return " ".join((*peer.packages, f"onnxruntime=={runtime}", "numpy", "pillow"))


def _installed(peer: Peer) -> Path:
    return _FOLDER / peer.name / "installed.txt"


def _failed(peer: Peer) -> Path:
    return _FOLDER / f"{peer.name}-failed.txt"
