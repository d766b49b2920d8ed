#!/usr/bin/env bash
# try.sh [IMAGE]: starts the container of runtime.yaml exactly as KServe would and asks it through both protocols.
# Arguments, ports, probes and security context are those of runtime.yaml, {{.Name}} is filled in, /mnt/models is
# read-only. It mounts a model repository, the folder of a model and the folder of a version in turn. Needs podman.
#   PYTHON=python   with cnnserve and PyYAML   (default: the checkout's .venv)
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
exec "${PYTHON:-$root/.venv/bin/python}" "$root/deploy/kserve/try.py" "${1:-cnnserve:cpu}" "$root"
