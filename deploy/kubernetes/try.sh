#!/usr/bin/env bash
# try.sh [IMAGE]: runs the Deployment of the overlay cpu with `podman kube play` and asks it for its health. The claim of
# the models becomes the folder model_repo. Needs podman, kubectl and the checkout's .venv (or PYTHON with PyYAML).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
work=$(mktemp -d)
stop() {
  podman kube down "$work/deployment.yaml" > /dev/null 2>&1 || true
  rm -rf "$work"
}
trap stop EXIT
cp -R "$root/model_repo" "$work/models"
chmod -R a+rX "$work"
kubectl kustomize "$root/deploy/kubernetes/overlays/cpu" | "$python" -c '
import sys, yaml
deployment = next(each for each in yaml.safe_load_all(sys.stdin) if each["kind"] == "Deployment")
spec = deployment["spec"]["template"]["spec"]
deployment["spec"]["replicas"] = 1
spec["volumes"][0] = {"name": "models", "hostPath": {"path": sys.argv[1], "type": "Directory"}}
container = spec["containers"][0]
container.update(image=sys.argv[2], imagePullPolicy="Never")
for port in container["ports"]:
    port.update(hostPort=port["containerPort"], hostIP="127.0.0.1")
# podman knows neither `sleep` nor these probes, and takes the number of a port only.
for name in ("lifecycle", "startupProbe", "readinessProbe"):
    del container[name]
container["livenessProbe"]["httpGet"]["port"] = 8000
print(yaml.safe_dump(deployment))' "$work/models" "${1:-cnnserve:cpu}" > "$work/deployment.yaml"
podman kube play "$work/deployment.yaml" > /dev/null
for _ in {1..100}; do
  if "$(dirname "$python")/cnnserve" health --address 127.0.0.1:8001 2> /dev/null; then
    exit 0
  fi
  sleep 0.2
done
podman pod logs cnnserve-pod >&2 || true
exit 1
