#!/usr/bin/env bash
# Puts the parts of prepare.sh together on the GPU machine:  unpack.sh FOLDER [DIR]  (default: /tmp/cnnserve-gpu)
# It makes DIR/site for SITE and DIR/models for --models of run.sh.
set -euo pipefail
folder=${1:?the folder with the parts}
to=${2:-/tmp/cnnserve-gpu}
[[ $(cat "$folder"/part-* | sha256sum | cut -d' ' -f1) == $(cat "$folder/SHA256") ]] || {
  echo "unpack.sh: the parts in $folder are not those of SHA256: one is missing or damaged; copy them again" >&2
  exit 1
}
mkdir -p "$to"
cat "$folder"/part-* | tar -C "$to" -xJ
echo "unpacked into $to"
