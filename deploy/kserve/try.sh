#!/usr/bin/env bash
# try.sh [IMAGE]: starts the container of runtime.yaml exactly as KServe would and asks it through both protocols.
# Arguments, ports, probes and security context are those of runtime.yaml, {{.Name}} is filled in, /mnt/models is
# read-only. It mounts a model repository, the folder of a model and the folder of a version in turn. Builds the
# image cnnserve:cpu if none is given. Needs podman.
#   PYTHON=python   with cnnserve and PyYAML   (default: the checkout's .venv)
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=deploy/docker/engine.sh
. "$root/deploy/docker/engine.sh"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
choose_engine podman
image=${1:-cnnserve:cpu}
[[ -n ${1:-} ]] || build_image "$log" "$root" cpu "$image"
"${PYTHON:-$root/.venv/bin/python}" "$root/deploy/kserve/try.py" "$image" "$root"
