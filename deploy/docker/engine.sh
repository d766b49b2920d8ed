# shellcheck shell=bash
# For scripts that source it. choose_engine sets `engine` and `build`, build_image builds an image.
# Uses docker if its daemon responds, otherwise podman, otherwise a podman that ../shared/containers/setup.sh prepares.
#   CNNSERVE_CONTAINERS=DIR   folder of the prepared podman, which is then used before any other engine
#                             (default: a folder in the temporary folder)

docker_folder=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
base=$(sed -n 's/^FROM \([^ ]*\).*/\1/p' "$docker_folder/Dockerfile" | head -n 1)
setup=$docker_folder/../../../shared/containers/setup.sh
engine=
build=

fail() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit 1
}

fail_with_log() { # LOG MESSAGE
  tail -n 40 "$1" >&2
  fail "$2"
}

# An engine is usable if its daemon runs and it has, or can get, the base image.
usable() { # ENGINE
  command -v "$1" > /dev/null || return 1
  "$1" info > /dev/null 2>&1 || return 1
  "$1" image inspect "$base" > /dev/null 2>&1 || "$1" pull --quiet "$base" > /dev/null 2>&1
}

prepared() { # FOLDER
  if [[ ! -x $1/build.sh ]]; then
    printf 'no container engine found; preparing podman, which takes about a minute\n'
    mkdir -p "$1"
    bash "$setup" "$1" > "$1/setup.log" 2>&1 || fail_with_log "$1/setup.log" "podman could not be prepared"
  fi
  # shellcheck source=/dev/null
  . "$1/env.sh"
  engine=podman
  build=$1/build.sh
}

choose_engine() { # [podman, if it must be podman]
  if [[ -n ${CNNSERVE_CONTAINERS:-} && ( -x $CNNSERVE_CONTAINERS/build.sh || -f $setup ) ]]; then
    prepared "$CNNSERVE_CONTAINERS"
  elif [[ ${1:-docker} == docker ]] && usable docker; then
    engine=docker
  elif usable podman; then
    engine=podman
  elif [[ -f $setup ]]; then
    prepared "${TMPDIR:-/tmp}/cnnserve-containers"
  else
    fail "no usable container engine; it takes podman, or docker with a running daemon, and the image $base"
  fi
}

# Quick if the layers of an earlier build still fit.
build_image() { # LOG CHECKOUT KIND TAG [ARGUMENTS]
  ENGINE=$engine BUILD=$build bash "$2/deploy/docker/build.sh" "${@:3}" > "$1" 2>&1 ||
    fail_with_log "$1" "the image $4 cannot be built"
}
