#!/usr/bin/env bash
# try.sh: starts the server and Prometheus of compose.yaml, and sees whether Prometheus scrapes the server and evaluates
# every alert. Builds both images; Prometheus is Debian's. Grafana and the collector are left out, because their images
# come from a registry. Needs podman and podman-compose.
#   PYTHON=python   with PyYAML   (default: the checkout's .venv)
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=deploy/docker/engine.sh
. "$root/deploy/docker/engine.sh"
command -v podman-compose > /dev/null || fail "podman-compose is missing; pip install podman-compose"
work=$(mktemp -d)
export SERVER_IMAGE=cnnserve:cpu-otel PROMETHEUS_IMAGE=cnnserve-try-prometheus
compose() {
  podman-compose -f "$work/deploy/compose/compose.yaml" "$@"
}
cleanup() {
  compose down --volumes > /dev/null 2>&1 || true
  rm -rf "$work"
}
trap cleanup EXIT
choose_engine podman
build_image "$work/build.log" "$root" cpu "$SERVER_IMAGE" --build-arg EXTRAS=otel

mkdir "$work/prometheus"
cat > "$work/prometheus/Dockerfile" <<'X'
FROM debian:bookworm-slim
RUN apt-get update && apt-get install --yes --no-install-recommends prometheus && rm -rf /var/lib/apt/lists/* \
 && install -d -o nobody /prometheus
USER nobody
ENTRYPOINT ["prometheus"]
X
if [[ -n $build ]]; then
  "$build" "$PROMETHEUS_IMAGE" "$work/prometheus" > "$work/build.log" 2>&1
else
  podman build --tag "$PROMETHEUS_IMAGE" "$work/prometheus" > "$work/build.log" 2>&1
fi || fail_with_log "$work/build.log" "the image of Prometheus cannot be built"

# A copy, because the file modes of the checkout may not allow the containers' users to read it.
mkdir "$work/deploy"
cp -R "$root/model_repo" "$work"
cp -R "$root/deploy/compose" "$root/deploy/observability" "$work/deploy"
chmod -R a+rX "$work"
compose config --quiet > "$work/config.log" 2>&1 || fail_with_log "$work/config.log" "compose.yaml is not valid"
compose up --detach --no-build cnnserve prometheus > "$work/up.log" 2>&1 ||
  fail_with_log "$work/up.log" "the services cannot be started"
"${PYTHON:-$root/.venv/bin/python}" "$root/deploy/compose/try.py" "$root" || {
  compose logs > "$work/compose.log" 2>&1 || true
  fail_with_log "$work/compose.log" "Prometheus does not watch the server"
}
