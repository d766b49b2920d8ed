#!/usr/bin/env bash
# build.sh [cpu|gpu|export] [TAG] [further arguments of the engine's build]
# Builds an image with its labels: version, commit, the commit's time, the base's digest. TAG is cnnserve:IMAGE if it is
# not given. With podman, every file has the commit's time, so that two builds of a commit are equal.
#   ENGINE=docker|podman   (default: docker if it is installed, else podman)
#   BUILD=COMMAND          builds instead of the engine: COMMAND TAG CONTEXT [arguments]
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
image=${1:-cpu}
tag=${2:-cnnserve:$image}
engine=${ENGINE:-$(command -v docker > /dev/null && echo docker || echo podman)}
base=$(sed -n 's/^FROM \([^ ]*\).*/\1/p' "$root/deploy/docker/Dockerfile" | head -n 1)

commit() { # FORMAT
  git -C "$root" -c safe.directory="$root" log -1 --format="$1" 2> /dev/null || true
}

digest=$("$engine" image inspect --format '{{.Digest}}' "$base" 2> /dev/null || true)
arguments=(
  --file "$root/deploy/docker/Dockerfile"
  --build-arg "IMAGE=$image"
  --build-arg "VERSION=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' "$root/server/cnnserve/__init__.py")"
  --build-arg "REVISION=$(commit %H)"
  --build-arg "CREATED=$(commit %cI)"
  --build-arg "BASE_DIGEST=${digest#<no value>}"
)
[[ $engine != podman || -z $(commit %ct) ]] || arguments+=(--timestamp "$(commit %ct)")
if [[ -n ${BUILD:-} ]]; then
  "$BUILD" "$tag" "$root" "${arguments[@]}" "${@:3}"
else
  "$engine" build --tag "$tag" "${arguments[@]}" "${@:3}" "$root"
fi
