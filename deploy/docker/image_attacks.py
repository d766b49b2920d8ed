# ruff: noqa: INP001, S603, T201 - a script, and it runs the container engine it is given.
"""The part of `image-test.sh` that attacks a built image: wrong settings, hostile surroundings, large requests.

Each `check_…` function runs containers of its own and raises `AssertionError` with what it saw instead.
"""

import argparse
import io
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from cnnserve_client import Client
from cnnserve_client.errors import CnnserveError

_LOCKED = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--security-opt", "label=disable")
_START_S = 60.0
# 57 MB as BMP, which is not compressed.
_LARGE_SIDE = 4368
_LOAD_S = 8.0
_LINKS = {
    "CNNSERVE_PORT": "tcp://10.0.0.1:8001",
    "CNNSERVE_GRPC_PORT": "tcp://10.0.0.1:8001",
    "CNNSERVE_GRPC_PORT_8001_TCP": "tcp://10.0.0.1:8001",
    "CNNSERVE_GRPC_SERVICE_HOST": "10.0.0.1",
    "CNNSERVE_HTTP_PORT": "tcp://10.0.0.2:8000",
}


class Images:
    """An image of an engine (podman or docker), and a model repository that containers can read."""

    def __init__(self, engine: str, image: str, models: Path, work: Path) -> None:
        self.engine = engine
        self.image = image
        self.models = models
        self.work = work

    def call(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs the engine. Its output is text; what goes wrong is told with it."""
        done = subprocess.run([self.engine, *words], check=False, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0 or not check, f"{words}: {done.stdout}{done.stderr}"
        return done

    def run(self, *words: str, flags: Sequence[str] = (), models: Path | None = None) -> tuple[int, str]:
        """Runs a container to its end and returns its status and output."""
        mount = ("--volume", f"{models or self.models}:/models:ro")
        done = self.call("run", "--rm", *_LOCKED, *mount, *flags, self.image, *words, check=False)
        return done.returncode, done.stdout + done.stderr

    @contextmanager
    def serving(self, *words: str, flags: Sequence[str] = (), models: Path | None = None) -> Iterator[str]:
        """Runs a server in the background and gives the container's name once the server is ready."""
        name = f"cnnserve-attack-{uuid.uuid4().hex[:8]}"
        mount = ("--volume", f"{models or self.models}:/models:ro")
        self.call("run", "--detach", "--name", name, *_LOCKED, *mount, *flags, self.image, *words)
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


def _equals(found: object, expected: object) -> None:
    assert found == expected, f"{found!r}, expected {expected!r}"


def _contains(text: str, *parts: str) -> None:
    for part in parts:
        assert part in text, f"{part!r} is not in {text!r}"


def check_labels(images: Images) -> str:
    """Every label says something, and the components of the SBOM are the installed distributions."""
    labels = json.loads(images.call("image", "inspect", images.image).stdout)[0]["Config"]["Labels"]
    prefix = "org.opencontainers.image."
    names = "title description vendor licenses source documentation version revision created base.name base.digest"
    empty = [name for name in names.split() if labels.get(prefix + name, "unknown") in ("", "unknown")]
    _equals(empty, [])
    installed = (
        "import importlib.metadata as m, json; "
        "b = json.load(open('/opt/cnnserve/sbom.cdx.json')); "
        "print(b['bomFormat'], sorted((c['name'], c['version']) for c in b['components']) "
        "== sorted((d.name, d.version) for d in m.distributions(path=__import__('sys').path[-1:])))"
    )
    done = images.call("run", "--rm", "--entrypoint", "python", images.image, "-c", installed)
    _equals(done.stdout.strip(), "CycloneDX True")
    return f"version {labels[prefix + 'version']}, commit {labels[prefix + 'revision'][:9]}; SBOM complete"


def check_bytecode(images: Images) -> str:
    """A served request imports no module that has no bytecode."""
    name = f"cnnserve-attack-{uuid.uuid4().hex[:8]}"
    mount = ("--volume", f"{images.models}:/models:ro", "--user", "0")
    images.call("run", "--detach", "--name", name, *mount, "--publish", "127.0.0.1::8001", images.image)
    try:
        images.wait(name, r"app: ready")
        with Client(images.call("port", name, "8001/tcp").stdout.split()[0]) as client:
            client.classify(_picture(28), model="lenet5")
            client.list_models()
        assert images.is_healthy(name)
        added = [line for line in images.call("diff", name).stdout.splitlines() if line.endswith(".pyc")]
        _equals(added, [])
    finally:
        images.call("rm", "--force", name, check=False)
    return "nothing is compiled at run time"


def check_links(images: Images) -> str:
    """Services named cnnserve, cnnserve-grpc and cnnserve-http do not keep the server from its start."""
    links = [word for name, value in _LINKS.items() for word in ("--env", f"{name}={value}")]
    with images.serving(flags=links) as name:
        _contains(images.log(name), "gRPC port 8001", "HTTP port 8000", "CNNSERVE_GRPC_PORT is 'tcp://10.0.0.1:8001'")
        assert images.is_healthy(name)
    return "ignored and told"


def check_settings(images: Images) -> str:
    """A settings file has its say beside what the image sets, and flags need no `serve`."""
    file = images.work / "server.toml"
    file.write_text('host = "127.0.0.1"\ngrpc_port = 9001\nhttp_port = 9000\n')
    file.chmod(0o644)
    flags = ("--env", "CNNSERVE_CONFIG=/server.toml", "--volume", f"{file}:/server.toml:ro")
    with images.serving(flags=flags) as name:
        _contains(images.log(name), "listening on 127.0.0.1: gRPC port 9001, HTTP port 9000")
        assert images.is_healthy(name)
    for words in (("--grpc-port", "9001"), ("--grpc-port", "0", "--http-port", "0"), ("serve", "--host", "127.0.0.2")):
        with images.serving(*words) as name:
            assert images.is_healthy(name), images.log(name)
    return "file, flags, free ports and one host: served, HEALTHCHECK passes"


def check_early_stop(images: Images) -> str:
    """SIGTERM in the first moments ends the container at once, with status 0."""
    for delay_s in (0.0, 0.01, 0.02, 0.04, 0.08, 0.2):
        name = f"cnnserve-attack-{uuid.uuid4().hex[:8]}"
        images.call("create", "--name", name, *_LOCKED, "--volume", f"{images.models}:/models:ro", images.image)
        try:
            images.call("start", name)
            time.sleep(delay_s)
            began = time.monotonic()
            images.call("stop", "--time", "20", name)
            assert time.monotonic() - began < 10, f"SIGTERM {delay_s} s after the start was lost"
            _equals(images.status(name, "ExitCode"), "0")
        finally:
            images.call("rm", "--force", name, check=False)
    return "six stops within 0.2 s of the start, none lost"


def check_permissions(images: Images) -> str:
    """A model folder that the container's user may not read is named as such."""
    for mode, folder in ((0o700, "lenet5"), (0o700, "lenet5/1"), (0o600, "lenet5/1/model.onnx")):
        models = images.work / f"models-{uuid.uuid4().hex[:8]}"
        shutil.copytree(images.models, models)
        (models / folder).chmod(mode)
        _, told = images.run("serve", "--dry-run", models=models)
        _contains(told, "Permission denied")
        assert "holds no version folder" not in told, told
    return "named"


def check_advice(images: Images) -> str:
    """What an image lacks is advised as an image, not as a call of pip."""
    status, told = images.run("export", "resnet18")
    _equals(status, 1)
    _contains(told, "deploy/docker/build.sh export")
    _, told = images.run("serve", "--device", "cuda", "--dry-run")
    _contains(told, "deploy/docker/build.sh gpu")
    assert "pip" not in told, told
    return "export and cuda name the images that have them"


def check_memory(images: Images) -> str:
    """Clients with 57 MB requests do not get the container killed."""
    said = []
    for limit, clients in (("1g", 16), ("2g", 32)):
        flags = ("--memory", limit, "--publish", "127.0.0.1::8001")
        with images.serving(flags=flags) as name:
            answered, refused = _load(images.call("port", name, "8001/tcp").stdout.split()[0], clients)
            _equals((images.status(name, "Running"), images.status(name, "OOMKilled")), ("true", "false"))
            assert images.is_healthy(name)
            assert answered, "no request was answered"
        said.append(f"{clients} clients under {limit}: {answered} answered, {refused} refused")
    return "; ".join(said)


def _load(address: str, clients: int) -> tuple[int, int]:
    picture = _picture(_LARGE_SIDE)
    counts, end = {True: 0, False: 0}, time.monotonic() + _LOAD_S

    def run(number: int) -> None:
        with Client(address, timeout_s=30, max_message_mib=64 + number, retries=0) as client:
            while time.monotonic() < end:
                try:
                    client.classify(picture, model="lenet5")
                    counts[True] += 1
                except CnnserveError:
                    counts[False] += 1
                    time.sleep(0.1)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return counts[True], counts[False]


def _picture(side: int) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((side, side), 60).convert("RGB").save(file, "BMP")
    return file.getvalue()


_CHECKS: dict[str, Callable[[Images], str]] = {
    "labels": check_labels,
    "bytecode": check_bytecode,
    "service": check_links,
    "settings": check_settings,
    "stopping": check_early_stop,
    "modes": check_permissions,
    "advice": check_advice,
    "memory": check_memory,
}


def main() -> int:
    """Runs the checks and prints a line for each. Returns 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", help="podman or docker")
    parser.add_argument("image")
    parser.add_argument("models", type=Path, help="model repository with lenet5, readable for everybody")
    parser.add_argument("checks", nargs="*", choices=[[], *_CHECKS], metavar="CHECK")
    args = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        images = Images(args.engine, args.image, args.models, Path(folder))
        for name in args.checks or _CHECKS:
            try:
                print(f"{name:<9} {_CHECKS[name](images)}", flush=True)
            except (AssertionError, subprocess.SubprocessError, CnnserveError) as error:
                print(f"{name:<9} FAILED: {error}", flush=True)
                failed = True
    return failed


if __name__ == "__main__":
    sys.exit(main())
