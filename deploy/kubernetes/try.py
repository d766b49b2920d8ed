# ruff: noqa: INP001, S603, S607, T201 - a script, and it runs podman and kubectl.
"""What `try.sh` runs: the Deployment of the overlay cpu in a pod of podman, with its models from two places."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from cnnserve_client import Client, CnnserveError

_ADDRESS = "127.0.0.1:8001"
_START_S = 60.0
_SOURCE = "s3://bucket/models"
# Both are made up, as is all that a local S3 server asks for.
_LOGIN = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


def deployment(kustomization: Path, models: Path, images: dict[str, str]) -> dict[str, Any]:
    """Returns the Deployment for podman: on this machine's loopback, with a folder in the place of the models' volume.

    `images`: what stands for the images of the manifests.
    """
    done = subprocess.run(["kubectl", "kustomize", kustomization], check=True, stdout=subprocess.PIPE)
    found: dict[str, Any] = next(one for one in yaml.safe_load_all(done.stdout) if one["kind"] == "Deployment")
    found["spec"]["replicas"] = 1
    # Otherwise podman removes an init container when it has ended, and fails if it ends slowly.
    found["metadata"]["annotations"] = {"io.podman.annotations.init.container.type": "always"}
    spec = found["spec"]["template"]["spec"]
    spec["volumes"][0] = {"name": "models", "hostPath": {"path": str(models), "type": "Directory"}}
    spec["hostNetwork"] = True
    for container in (*spec["containers"], *spec.get("initContainers", [])):
        # podman puts no variables into arguments, and takes variables from ConfigMaps only.
        args = [word.replace("$(SOURCE)", _SOURCE) for word in container["args"]]
        sources = [{"configMapRef": source["secretRef"]} for source in container.get("envFrom", [])]
        container.update(image=images[container["image"]], imagePullPolicy="Never", args=args, envFrom=sources)
    (server,) = spec["containers"]
    server["env"].append({"name": "CNNSERVE_HOST", "value": "127.0.0.1"})
    # podman knows neither `sleep` nor these probes, and maps no ports of a host network. Ports of probes are numbers.
    for name in ("lifecycle", "startupProbe", "readinessProbe", "ports"):
        del server[name]
    server["livenessProbe"]["httpGet"]["port"] = 8000
    return found


@contextmanager
def playing(*manifests: dict[str, Any]) -> Iterator[None]:
    """Runs the pod of these manifests."""
    text = yaml.safe_dump_all(manifests)
    began = subprocess.run(["podman", "kube", "play", "-"], input=text, capture_output=True, text=True, check=False)
    try:
        if began.returncode:
            raise SystemExit(f"podman kube play: {began.stderr}")
        yield
    finally:
        subprocess.run(["podman", "kube", "down", "-"], input=text, capture_output=True, text=True, check=False)


def classify(picture: Path) -> str:
    """Waits until the server classifies a picture, and returns what it found."""
    end = time.monotonic() + _START_S
    while True:
        try:
            with Client(_ADDRESS) as client:
                top = client.classify(picture, model="lenet5", top_k=1).results[0].top
                return f"lenet5 finds class {top.label} with {top.probability:.3f}"
        except CnnserveError as error:
            if time.monotonic() > end:
                subprocess.run(["podman", "pod", "logs", "cnnserve-pod"], check=False)
                raise SystemExit(f"the server does not answer: {error}") from error
            time.sleep(0.2)


def try_volume(root: Path, models: Path, images: dict[str, str]) -> str:
    """Serves the models of a volume."""
    with playing(deployment(root / "deploy" / "kubernetes" / "overlays" / "cpu", models, images)):
        return classify(models / "lenet5" / "1" / "golden.png")


def try_pull(root: Path, models: Path, images: dict[str, str], work: Path) -> str:
    """Serves the models that an init container has pulled from S3 into an empty volume."""
    shutil.copytree(root / "deploy" / "kubernetes", work / "kubernetes")
    own = work / "kubernetes" / "own"
    own.mkdir()
    (own / "kustomization.yaml").write_text("resources: [../overlays/cpu]\ncomponents: [../components/models-pull]\n")
    empty = work / "empty"
    empty.mkdir()
    # In Kubernetes, fsGroup lets the user of the image write into the volume.
    empty.chmod(0o777)
    with s3_server(root, models) as endpoint:
        source = _named("ConfigMap", "cnnserve-models", data={"source": _SOURCE})
        login = _named("ConfigMap", "cnnserve-source", data=_LOGIN | endpoint)
        with playing(source, login, deployment(own, empty, images)):
            return classify(models / "lenet5" / "1" / "golden.png")


def _named(kind: str, name: str, **content: object) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name}, **content}


@contextmanager
def s3_server(root: Path, models: Path) -> Iterator[dict[str, str]]:
    """Runs a local S3 server with the models in it, and gives the variable that names it."""
    path = os.pathsep.join((str(root / ".venv" / "remote"), os.environ.get("PYTHONPATH", "")))
    environment = os.environ | _LOGIN | {"PYTHONPATH": path}
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, **output, text=True, env=environment) as server:
        try:
            assert server.stdout is not None
            said = iter(server.stdout.readline, "")
            found = next(match for line in said if (match := re.search(r"http://127\.0\.0\.1:\d+", line)))
            endpoint = {"AWS_ENDPOINT_URL": found[0]}
            code = (
                "import sys, s3fs\ns3 = s3fs.S3FileSystem()\ns3.mkdir('bucket')\ns3.put(*sys.argv[1:], recursive=True)"
            )
            put = [sys.executable, "-c", code, f"{models}/", "bucket/models"]
            subprocess.run(put, check=True, env=environment | endpoint)
            yield endpoint
        finally:
            server.terminate()


def main() -> None:
    """Tries both places."""
    root, image, pull_image = Path(sys.argv[1]), *sys.argv[2:]
    images = {"cnnserve:cpu": image, "cnnserve-pull:cpu": pull_image}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        models = shutil.copytree(root / "model_repo", work / "models")
        # The user of the image must be able to read them.
        subprocess.run(["chmod", "-R", "a+rX", work], check=True)
        print(f"volume    {try_volume(root, models, images)}", flush=True)
        if not (root / ".venv" / "remote" / "moto").is_dir():
            print("pull      not tried: no S3 server, which make remote installs")
            return
        print(f"pull      {try_pull(root, models, images, work)}", flush=True)


if __name__ == "__main__":
    main()
