# ruff: noqa: INP001, S108, T201 - a script, and it names shared memory and folders of containers.
"""The part of `image-test.sh` that attacks a built image: wrong settings, hostile surroundings, large requests.

Each `check_…` function runs containers of its own and raises `AssertionError` with what it saw instead.
"""

import argparse
import io
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from containers import LOCKED, Images, contains, equals, post
from PIL import Image

from cnnserve_client import Client
from cnnserve_client.errors import CnnserveError

# 57 MB as BMP, which is not compressed.
_LARGE_SIDE = 4368
_LOAD_S = 8.0
_SHARED = Path("/dev/shm")
_DIGIT = [1, 28, 28, 1]
_LINKS = {
    "CNNSERVE_PORT": "tcp://10.0.0.1:8001",
    "CNNSERVE_GRPC_PORT": "tcp://10.0.0.1:8001",
    "CNNSERVE_GRPC_PORT_8001_TCP": "tcp://10.0.0.1:8001",
    "CNNSERVE_GRPC_SERVICE_HOST": "10.0.0.1",
    "CNNSERVE_HTTP_PORT": "tcp://10.0.0.2:8000",
}


def check_labels(images: Images) -> str:
    """Every label says something, and the components of the SBOM are the installed distributions."""
    labels = json.loads(images.call("image", "inspect", images.image).stdout)[0]["Config"]["Labels"]
    prefix = "org.opencontainers.image."
    names = "title description vendor licenses source documentation version revision created base.name base.digest"
    empty = [name for name in names.split() if labels.get(prefix + name, "unknown") in ("", "unknown")]
    equals(empty, [])
    installed = (
        "import importlib.metadata as m, json; "
        "b = json.load(open('/opt/cnnserve/sbom.cdx.json')); "
        "print(b['bomFormat'], sorted((c['name'], c['version']) for c in b['components']) "
        "== sorted((d.name, d.version) for d in m.distributions(path=__import__('sys').path[-1:])))"
    )
    done = images.call("run", "--rm", "--entrypoint", "python", images.image, "-c", installed)
    equals(done.stdout.strip(), "CycloneDX True")
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
        equals(added, [])
    finally:
        images.call("rm", "--force", name, check=False)
    return "nothing is compiled at run time"


def check_links(images: Images) -> str:
    """Services named cnnserve, cnnserve-grpc and cnnserve-http do not keep the server from its start."""
    links = [word for name, value in _LINKS.items() for word in ("--env", f"{name}={value}")]
    with images.serving(flags=links) as name:
        contains(images.log(name), "gRPC port 8001", "HTTP port 8000", "CNNSERVE_GRPC_PORT is 'tcp://10.0.0.1:8001'")
        assert images.is_healthy(name)
    return "ignored and told"


def check_settings(images: Images) -> str:
    """A settings file has its say beside what the image sets, and flags need no `serve`."""
    file = images.work / "server.toml"
    file.write_text('host = "127.0.0.1"\ngrpc_port = 9001\nhttp_port = 9000\n')
    file.chmod(0o644)
    flags = ("--env", "CNNSERVE_CONFIG=/server.toml", "--volume", f"{file}:/server.toml:ro")
    with images.serving(flags=flags) as name:
        contains(images.log(name), "listening on 127.0.0.1: gRPC port 9001, HTTP port 9000")
        assert images.is_healthy(name)
    for words in (("--grpc-port", "9001"), ("--grpc-port", "0", "--http-port", "0"), ("serve", "--host", "127.0.0.2")):
        with images.serving(*words) as name:
            assert images.is_healthy(name), images.log(name)
    return "file, flags, free ports and one host: served, HEALTHCHECK passes"


def check_early_stop(images: Images) -> str:
    """SIGTERM in the first moments ends the container at once, with status 0."""
    for delay_s in (0.0, 0.01, 0.02, 0.04, 0.08, 0.2):
        name = f"cnnserve-attack-{uuid.uuid4().hex[:8]}"
        images.call("create", "--name", name, *LOCKED, "--volume", f"{images.models}:/models:ro", images.image)
        try:
            images.call("start", name)
            time.sleep(delay_s)
            began = time.monotonic()
            images.call("stop", "--time", "20", name)
            assert time.monotonic() - began < 10, f"SIGTERM {delay_s} s after the start was lost"
            equals(images.status(name, "ExitCode"), "0")
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
        contains(told, "Permission denied")
        assert "holds no version folder" not in told, told
    return "named"


def check_shared_memory(images: Images) -> str:
    """A region of another user is refused with what to do, unless that user lets everybody read and write it."""
    key = f"cnnserve-attack-{uuid.uuid4().hex[:8]}"
    flags = ("--ipc", "host", "--publish", "127.0.0.1::8000")
    pixels = bytes(range(256)) * 3 + bytes(16)
    region = _SHARED / key
    # In this container, this user is not the server's, and the server has no capability to pass over modes.
    region.write_bytes(pixels)
    try:
        with images.serving("--shared-memory-prefix", "cnnserve-attack-", flags=flags) as name:
            address = images.call("port", name, "8000/tcp").stdout.split()[0]
            register = {"key": f"/{key}", "offset": 0, "byte_size": len(pixels)}
            for mode in (0o600, 0o644):
                region.chmod(mode)
                status, told = post(address, "/v2/systemsharedmemory/region/digit/register", register)
                equals(status, 400)
                contains(told["error"], "Permission denied", "user 10001", "chmod 666")
            region.chmod(0o666)
            equals(post(address, "/v2/systemsharedmemory/region/digit/register", register)[0], 200)
            shared = {"shared_memory_region": "digit", "shared_memory_byte_size": len(pixels)}
            equals(_infer(address, parameters=shared), _infer(address, data=list(pixels)))
    finally:
        region.unlink()
    return "modes 600 and 644 of another user refused with advice, 666 gives the answer of a message"


def _infer(address: str, **source: object) -> object:
    """Returns the scores of a digit that comes from `source`."""
    entry = {"name": "image", "datatype": "UINT8", "shape": _DIGIT, **source}
    status, answer = post(address, "/v2/models/lenet5/infer", {"inputs": [entry]})
    equals((status, answer.get("error")), (200, None))
    return answer["outputs"][0]["data"]


def check_advice(images: Images) -> str:
    """What an image lacks is advised as an image, not as a call of pip."""
    status, told = images.run("export", "resnet18")
    equals(status, 1)
    contains(told, "deploy/docker/build.sh export")
    _, told = images.run("serve", "--device", "cuda", "--dry-run")
    # In the image gpu, nothing but the driver is missing, which the container gets with its GPUs.
    contains(told, "libcuda.so.1 is missing" if images.kind == "gpu" else "deploy/docker/build.sh gpu")
    assert "pip" not in told, told
    status, told = images.run("pull", "s3://bucket/models", "--repository", "/tmp/models")
    equals(status, 1)
    contains(told, "s3:// needs fsspec", "--build-arg EXTRAS=remote")
    return "export, cuda and s3:// name the images that have them"


def check_memory(images: Images) -> str:
    """Clients with 57 MB requests do not get the container killed."""
    said = []
    for limit, clients in (("1g", 16), ("2g", 32)):
        flags = ("--memory", limit, "--publish", "127.0.0.1::8001")
        with images.serving(flags=flags) as name:
            answered, refused = _load(images.call("port", name, "8001/tcp").stdout.split()[0], clients)
            equals((images.status(name, "Running"), images.status(name, "OOMKilled")), ("true", "false"))
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
    "shared": check_shared_memory,
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
