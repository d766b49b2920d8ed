#!/usr/bin/env bash
# Builds a container image, runs it and checks size, user, start, classes, health, a stop under load, and attacks it.
#   image-test.sh [cpu|gpu|export]     (default: cpu)
# Uses docker if its daemon responds, otherwise podman, otherwise a podman that ../shared/containers/setup.sh prepares.
#   CNNSERVE_CONTAINERS=DIR   folder of the prepared podman, which is then used before any other engine
#                             (default: a folder in the temporary folder)
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
python=$root/.venv/bin/python
dockerfile=$here/Dockerfile
setup=$root/../shared/containers/setup.sh
kind=${1:-cpu}
image=cnnserve:image-test-$kind
container=cnnserve-image-test-$$
model=lenet5
base=$(sed -n 's/^FROM \([^ ]*\).*/\1/p' "$dockerfile" | head -n 1)
work=$(mktemp -d)
engine=
build=

cleanup() {
  [[ -z $engine ]] || "$engine" rm --force "$container" > /dev/null 2>&1 || true
  rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

fail() {
  printf 'image-test: %s\n' "$*" >&2
  exit 1
}

fail_with_log() { # LOG MESSAGE
  tail -n 40 "$1" >&2
  fail "$2"
}

# An engine is usable if its daemon runs and it has, or can get, the base image.
usable() {
  command -v "$1" > /dev/null || return 1
  "$1" info > /dev/null 2>&1 || return 1
  "$1" image inspect "$base" > /dev/null 2>&1 || "$1" pull --quiet "$base" > /dev/null 2>&1
}

prepared() { # FOLDER
  if [[ ! -x $1/build.sh ]]; then
    printf 'image-test: no container engine found; preparing podman, which takes about a minute\n'
    mkdir -p "$1"
    bash "$setup" "$1" > "$1/setup.log" 2>&1 || fail_with_log "$1/setup.log" "podman could not be prepared"
  fi
  # shellcheck source=/dev/null
  . "$1/env.sh"
  engine=podman
  build=$1/build.sh
}

choose_engine() {
  if [[ -n ${CNNSERVE_CONTAINERS:-} && ( -x $CNNSERVE_CONTAINERS/build.sh || -f $setup ) ]]; then
    prepared "$CNNSERVE_CONTAINERS"
  elif usable docker; then
    engine=docker
  elif usable podman; then
    engine=podman
  elif [[ -f $setup ]]; then
    prepared "${TMPDIR:-/tmp}/cnnserve-containers"
  else
    fail "no usable container engine; it takes podman, or docker with a running daemon, and the image $base"
  fi
}

build_image() { # TAG [ARGUMENTS]
  ENGINE=$engine BUILD=$build bash "$here/build.sh" "$kind" "$@" > "$work/build.log" 2>&1 ||
    fail_with_log "$work/build.log" "the image cannot be built"
}

# Every path of an image with its mode, owner and content; not the times, which Docker takes from the build.
list_files() { # TAG
  "$engine" run --rm --user 0 --network none --entrypoint sh "$1" -c '
    cd / && find bin etc home lib* opt root sbin srv tmp usr var -xdev \( -name resolv.conf -o -name hosts -o -name hostname \) -prune \
      -o -printf "%p %m %U %l\n" -type f -exec sha256sum {} + | sort' 2> /dev/null
}

check_second_build() {
  build_image "$image-again" --no-cache
  list_files "$image" > "$work/first"
  list_files "$image-again" > "$work/second"
  "$engine" rmi "$image-again" > /dev/null 2>&1 || true
  [[ -s $work/first ]] || fail "the files of the image cannot be listed"
  diff "$work/first" "$work/second" > "$work/difference" ||
    fail_with_log "$work/difference" "two builds differ"
}

# The image must not contain torch, onnx, pip or pytest, must not run as root, and must have telemetry disabled.
check_contents() {
  "$engine" run --rm --entrypoint python "$image" -c '
import importlib.util, os, sys
wrong = [name for name in ("torch", "onnx", "pip", "pytest") if importlib.util.find_spec(name)]
wrong += ["root as user"] * (os.getuid() == 0)
wrong += ["ONNX Runtime telemetry"] * (os.environ.get("ORT_DISABLE_TELEMETRY") != "1")
sys.exit(", ".join(wrong) or None)' > "$work/contents.log" 2>&1 ||
    fail_with_log "$work/contents.log" "the image contains what it must not contain"
}

start() {
  # A copy, because the file modes of the checkout may not allow the container's user to read it.
  cp -R "$root/model_repo" "$work/models"
  chmod -R a+rX "$work/models"
  local arguments=(
    --detach --name "$container" --read-only --cap-drop ALL
    --security-opt no-new-privileges --security-opt label=disable
    --volume "$work/models:/models:ro"
    --publish 127.0.0.1::8001 --publish 127.0.0.1::8000
  )
  # Docker's --read-only makes everything read-only, but podman's needs this flag for /tmp.
  [[ $engine != podman ]] || arguments+=(--read-only-tmpfs=false)
  "$engine" run "${arguments[@]}" "$image" > "$work/run.log" 2>&1 ||
    fail_with_log "$work/run.log" "the container cannot be started"
}

port() { # NUMBER
  "$engine" port "$container" "$1/tcp" | head -n 1
}

say_log() {
  "$engine" logs "$container" > "$work/server.log" 2>&1 || true
  fail_with_log "$work/server.log" "$1"
}

check_health() {
  if [[ $engine == podman ]]; then
    podman healthcheck run "$container" > /dev/null
    return
  fi
  local state=
  for _ in {1..60}; do
    state=$(docker inspect --format '{{.State.Health.Status}}' "$container")
    [[ $state == starting ]] || break
    sleep 1
  done
  [[ $state == healthy ]]
}

[[ -x $python ]] || fail "no .venv in the checkout: run make setup first"
choose_engine
printf 'image-test: building with %s\n' "$engine"
build_image "$image"
size=$("$engine" image inspect --format '{{.Size}}' "$image")
if [[ $kind == export ]]; then
  "$engine" run --rm --read-only --tmpfs /tmp --volume "$work:/out:rw" --user 0 "$image" \
    export resnet18 --repository /out/exported > "$work/export.log" 2>&1 ||
    fail_with_log "$work/export.log" "the image cannot export"
  printf 'image     %s MB; exported a network with torch\n' "$((size / 1000000))"
  exit 0
fi
check_contents
[[ $kind != cpu ]] || ((size <= 300000000)) || fail "the image has $size bytes, expected at most 300000000"

printf 'image-test: starting\n'
began=$("$python" -c 'import time; print(time.time())')
start
grpc=$(port 8001)
http=$(port 8000)
start_seconds=$("$python" "$here/image_test_load.py" wait "$http" "$began") || say_log "the server is not ready"
"$root/.venv/bin/cnnserve" health --address "$grpc" > /dev/null || say_log "the server is not SERVING from outside"
digits=$("$python" "$here/image_test_load.py" classify "$grpc" "$model") || say_log "wrong classes: $digits"
check_health || say_log "HEALTHCHECK fails"

printf 'image-test: stopping the container under load\n'
stopped=$("$python" "$here/image_test_load.py" stop "$grpc" "$model" \
  -- "$engine" stop --time 30 "$container" 2> "$work/stop.log") || {
  cat "$work/stop.log" >&2
  say_log "the stop was not clean: $stopped"
}
code=$("$engine" inspect --format '{{.State.ExitCode}}' "$container")
[[ $code == 0 ]] || say_log "the container exited with status $code"

printf '\n'
printf '%-9s %s\n' \
  image "$((size / 1000000)) MB, no torch, not root, read-only" \
  start "$start_seconds s from the run command to SERVING" \
  classify "$digits" \
  health "HEALTHCHECK passes" \
  stop "$stopped; exit code 0"
"$python" "$here/image_attacks.py" "$engine" "$image" "$work/models" || fail "an attack succeeded"
check_second_build
printf '%-9s %s\n' again "a second build has the same files"
