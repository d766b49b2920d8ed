"""Virtual environments for the clients of other projects. They stay in build/interop for the next run."""

import contextlib
import fcntl
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import HANG_S

ROOT = Path(__file__).parents[2] / "build" / "interop"
CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
PROGRAMS = Path(__file__).parent / "programs"
# `make interop` needs all environments. `make test` uses those that pip installs within seconds.
DEMANDED = bool(os.environ.get("CNNSERVE_INTEROP"))

slow = [pytest.mark.interop]


def unavailable(what: str, reason: str) -> None:
    """Skips the test, or fails it if `make interop` runs."""
    text = f"{what} cannot be installed: {reason[-500:]}"
    pytest.fail(text) if DEMANDED else pytest.skip(text)


def environment(name: str, *requirements: str) -> Path:
    """Returns the folder of an environment with these packages, without cnnserve."""
    digest = hashlib.sha256(" ".join((sys.version, *requirements)).encode()).hexdigest()[:12]
    folder = ROOT / f"{name}-{digest}"
    with _locked(folder):
        done = folder / "installed"
        if not done.exists():
            subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True, timeout=HANG_S)
            install = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", *requirements]
            result = subprocess.run(install, capture_output=True, text=True, check=False, timeout=500, env=_clean())
            if result.returncode:
                unavailable(name, result.stderr)
            done.touch()
    return folder


def packages(*names: str) -> Path:
    """A folder with these packages, in the versions of constraints.txt and without their needs, to import from."""
    digest = hashlib.sha256(" ".join((sys.version, CONSTRAINTS.read_text(), *names)).encode()).hexdigest()[:12]
    folder = ROOT / f"packages-{digest}"
    with _locked(folder):
        done = folder / "installed"
        if not done.exists():
            install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", folder]
            command = [*install, "--constraint", CONSTRAINTS, *names]
            result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
            if result.returncode:
                unavailable(", ".join(names), result.stderr)
            done.touch()
    return folder


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lets one test process at a time build the folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def run_program(folder: Path, name: str, *arguments: str) -> Any:
    """Runs a program of `programs/` without cnnserve. Returns the JSON that it prints, None if it prints nothing."""
    command = [folder / "bin" / "python", "-W", "ignore", PROGRAMS / f"{name}.py", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=HANG_S, env=_clean())
    assert result.returncode == 0, result.stdout + result.stderr
    return json.loads(result.stdout or "null")


def _clean() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
