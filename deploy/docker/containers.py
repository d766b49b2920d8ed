# ruff: noqa: INP001, S603 - a module of scripts, and it runs the container engine it is given.
"""Runs containers of an image for `image_attacks.py`, and compares."""

import http.client
import json
import re
import subprocess
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LOCKED = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--security-opt", "label=disable")
_START_S = 60.0


class Images:
    """An image of an engine (podman or docker), and a model repository that containers can read."""

    def __init__(self, engine: str, image: str, models: Path, work: Path) -> None:
        self.engine = engine
        self.image = image
        self.models = models
        self.work = work

    @property
    def kind(self) -> str:
        """`cpu`, `gpu` or `export`."""
        variables = json.loads(self.call("image", "inspect", self.image).stdout)[0]["Config"]["Env"]
        return dict(variable.split("=", 1) for variable in variables)["CNNSERVE_IMAGE"]

    def call(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs the engine. Its output is text; what goes wrong is told with it."""
        done = subprocess.run([self.engine, *words], check=False, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0 or not check, f"{words}: {done.stdout}{done.stderr}"
        return done

    def run(self, *words: str, flags: Sequence[str] = (), models: Path | None = None) -> tuple[int, str]:
        """Runs a container to its end and returns its status and output."""
        mount = ("--volume", f"{models or self.models}:/models:ro")
        done = self.call("run", "--rm", *LOCKED, *mount, *flags, self.image, *words, check=False)
        return done.returncode, done.stdout + done.stderr

    @contextmanager
    def serving(self, *words: str, flags: Sequence[str] = (), models: Path | None = None) -> Iterator[str]:
        """Runs a server in the background and gives the container's name once the server is ready."""
        name = f"cnnserve-attack-{uuid.uuid4().hex[:8]}"
        mount = ("--volume", f"{models or self.models}:/models:ro")
        self.call("run", "--detach", "--name", name, *LOCKED, *mount, *flags, self.image, *words)
        try:
            self.wait(name, r"app: ready")
            yield name
        finally:
            self.call("rm", "--force", name, check=False)

    def log(self, name: str) -> str:
        """Returns what a container has printed."""
        done = self.call("logs", name)
        return done.stdout + done.stderr

    def wait(self, name: str, pattern: str) -> re.Match[str]:
        """Waits until a container has printed a text."""
        end = time.monotonic() + _START_S
        while time.monotonic() < end:
            if found := re.search(pattern, self.log(name)):
                return found
            time.sleep(0.1)
        raise AssertionError(f"{pattern!r} is not in the log: {self.log(name)}")

    def status(self, name: str, field: str) -> str:
        """Returns a field of a container's state."""
        return self.call("inspect", "--format", f"{{{{.State.{field}}}}}", name).stdout.strip()

    def is_healthy(self, name: str) -> bool:
        """Runs the image's own HEALTHCHECK."""
        found = json.loads(self.call("image", "inspect", self.image).stdout)[0]
        command = (found.get("Healthcheck") or found["Config"]["Healthcheck"])["Test"]
        assert command[0] == "CMD", command
        end = time.monotonic() + _START_S
        # The server tells its ports just before it is ready, or just after.
        while (done := self.call("exec", name, *command[1:], check=False)).returncode and time.monotonic() < end:
            time.sleep(0.2)
        return done.returncode == 0


def equals(found: object, expected: object) -> None:
    """Raises `AssertionError` with both if they differ."""
    assert found == expected, f"{found!r}, expected {expected!r}"


def contains(text: str, *parts: str) -> None:
    """Raises `AssertionError` if a text lacks one of its parts."""
    for part in parts:
        assert part in text, f"{part!r} is not in {text!r}"


def post(address: str, path: str, body: object) -> tuple[int, Any]:
    """Sends a request with JSON to HOST:PORT and returns the status and JSON of the response."""
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read()
        return response.status, json.loads(text) if text else {}
    finally:
        connection.close()
