# ruff: noqa: INP001, S603, S607, T201 - a script, and it runs podman.
"""What `try.sh` runs: a pod of the runtime's container, its probes, and requests through both protocols."""

import http.client
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cnnserve_client import Client

_NAME = "digits"
_PLACES = (".", "lenet5", "lenet5/1")
_SHAPE = (1, 28, 28, 1)


def pod(runtime: dict[str, Any], image: str, models: Path) -> dict[str, Any]:
    """Returns the pod that KServe makes: the runtime's container with its arguments filled, and the model's mount."""
    (container,) = json.loads(json.dumps(runtime["spec"]["containers"]).replace("{{.Name}}", _NAME))
    mounts = [{"name": "models", "mountPath": "/mnt/models", "readOnly": True}]
    ports = [port | {"hostPort": port["containerPort"], "hostIP": "127.0.0.1"} for port in container["ports"]]
    # podman's kube play knows no probe but liveness, and no `sleep`.
    known = {
        key: value for key, value in container.items() if key not in ("startupProbe", "readinessProbe", "lifecycle")
    }
    container = known | {"image": image, "imagePullPolicy": "Never", "ports": ports, "volumeMounts": mounts}
    volumes = [{"name": "models", "hostPath": {"path": str(models), "type": "Directory"}}]
    metadata = {"name": f"{_NAME}-predictor"}
    spec = {"containers": [container], "volumes": volumes, "restartPolicy": "Never"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def ask(port: int, path: str, body: object = None) -> tuple[int, Any]:
    """Sends one HTTP request and returns its status and JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        text = None if body is None else json.dumps(body)
        connection.request("GET" if body is None else "POST", path, text, {"Content-Type": "application/json"})
        response = connection.getresponse()
        data = response.read()
        return response.status, json.loads(data) if data else None
    finally:
        connection.close()


def probe(port: int, found: dict[str, Any]) -> float:
    """Asks as the kubelet does until the probe passes, and returns the seconds it took."""
    began = time.monotonic()
    for _ in range(found["failureThreshold"]):
        try:
            if ask(port, found["httpGet"]["path"])[0] == http.HTTPStatus.OK:
                return time.monotonic() - began
        except (OSError, http.client.HTTPException, ValueError):
            pass
        time.sleep(0.2)
    raise SystemExit(f"the probe {found} did not pass")


def try_one(runtime: dict[str, Any], image: str, models: Path, name: str) -> str:
    """Starts the pod, waits for its probes, asks through both protocols, stops it. Returns what happened."""
    container = runtime["spec"]["containers"][0]
    http_port, grpc_port = (port["containerPort"] for port in container["ports"])
    text = yaml.safe_dump(pod(runtime, image, models))
    subprocess.run(["podman", "kube", "play", "-"], input=text, check=True, capture_output=True, text=True)
    try:
        seconds = probe(http_port, container["startupProbe"])
        probe(http_port, container["readinessProbe"])
        probe(http_port, container["livenessProbe"])
        pixels = np.random.default_rng(0).integers(0, 256, _SHAPE, np.uint8)
        _, metadata = ask(http_port, f"/v2/models/{name}")
        entry = metadata["inputs"][0]
        body = {"name": entry["name"], "datatype": entry["datatype"], "shape": _SHAPE, "data": pixels.ravel().tolist()}
        status, answer = ask(http_port, f"/v2/models/{name}/infer", {"inputs": [body]})
        if status != http.HTTPStatus.OK:
            raise SystemExit(f"HTTP answers {status}: {answer}")
        with Client(f"127.0.0.1:{grpc_port}") as client:
            result = client.infer({entry["name"]: pixels}, model=name)
        (by_grpc,) = result.outputs.values()
        by_http = np.array(answer["outputs"][0]["data"], np.float32)
        if not np.allclose(by_http, np.ravel(by_grpc), atol=1e-6):
            raise SystemExit("the two protocols answer differently")
        return f"ready after {seconds:.1f} s, v2 and grpc-v2 give the same {by_http.size} values"
    finally:
        subprocess.run(["podman", "kube", "down", "-"], input=text, check=False, capture_output=True, text=True)


def main() -> None:
    """Tries the runtime with the three kinds of mounted models."""
    image, root = sys.argv[1], Path(sys.argv[2])
    runtime = yaml.safe_load((root / "deploy" / "kserve" / "runtime.yaml").read_text())
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder, "models")
        subprocess.run(["cp", "-R", root / "model_repo", models], check=True)
        subprocess.run(["chmod", "-R", "a+rX", folder], check=True)
        for place in _PLACES:
            name = "lenet5" if place == "." else _NAME
            print(f"{place:<9} {try_one(runtime, image, models / place, name)}", flush=True)


if __name__ == "__main__":
    main()
