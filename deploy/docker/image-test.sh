#!/usr/bin/env bash
# Builds a container image, runs it and checks size, user, start, classes, health, a stop under load, and attacks it.
#   image-test.sh [cpu|gpu|export]     (default: cpu)
# engine.sh says which container engine it uses.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
python=$root/.venv/bin/python
kind=${1:-cpu}
image=cnnserve:image-test-$kind
container=cnnserve-image-test-$$
model=lenet5
work=$(mktemp -d)
# shellcheck source=deploy/docker/engine.sh
. "$here/engine.sh"

cleanup() {
  [[ -z $engine ]] || "$engine" rm --force "$container" > /dev/null 2>&1 || true
  rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Every path of an image with its mode, owner and content; not the times, which Docker takes from the build.
list_files() { # TAG
  "$engine" run --rm --user 0 --network none --entrypoint sh "$1" -c '
    cd / && find bin etc home lib* opt root sbin srv tmp usr var -xdev \( -name resolv.conf -o -name hosts -o -name hostname \) -prune \
      -o -printf "%p %m %U %l\n" -type f -exec sha256sum {} + | sort' 2> /dev/null
}

# The second build is from a checkout with umask 077: the modes of its files must not get into the image.
check_second_build() {
  local checkout=$work/checkout
  mkdir "$checkout"
  (
    umask 077
    sed -n 's/^!//p' "$root/.dockerignore" | tar -C "$root" -cf - --exclude __pycache__ .dockerignore deploy/docker -T - |
      tar -C "$checkout" --no-same-permissions -xf -
  )
  build_image "$work/build.log" "$checkout" "$kind" "$image-again" --no-cache
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
  # Without a GPU, the server of the image gpu runs on the CPU.
  if [[ $kind == gpu && -e /dev/nvidiactl ]]; then
    [[ $engine == docker ]] && arguments+=(--gpus all) || arguments+=(--device nvidia.com/gpu=all)
  fi
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
build_image "$work/build.log" "$root" "$kind" "$image"
size=$("$engine" image inspect --format '{{.Size}}' "$image")
if [[ $kind == export ]]; then
  "$engine" run --rm --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges "$image" \
    export resnet18 --repository /tmp/models > "$work/export.log" 2>&1 ||
    fail_with_log "$work/export.log" "the image cannot export"
  printf 'image     %s MB; exported a network with torch, not root, read-only\n' "$((size / 1000000))"
  "$python" "$here/image_attacks.py" "$engine" "$image" "$root/model_repo" labels || fail "an attack succeeded"
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
printf '%-9s %s\n' again "a second build, from a checkout with umask 077, has the same files"
