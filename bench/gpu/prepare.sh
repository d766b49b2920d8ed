#!/usr/bin/env bash
# Packs what a GPU machine without a package index needs for run.sh: packages for its Python, and all models.
#   prepare.sh FOLDER [PYTHON_VERSION]     FOLDER/part-aa, part-ab, ... of at most 55 MiB, and FOLDER/SHA256
# There: unpack.sh FOLDER [DIR]. CUDA 13, cuDNN 9 and Python (default: 3.12) have to be on that machine.
# PYTHON: an interpreter with the extras cpu and export (default: .venv/bin/python).
# A second start goes on with what is missing.
set -euo pipefail
folder=$(mkdir -p "${1:?folder for the parts}" && cd "$1" && pwd)
version=${2:-3.12}
root=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
export PYTHONPATH="$root/server:$root/export:$root/client"
cd "$root"
"$python" bench/gpu/models.py "$folder/packed/models"
git rev-parse --short HEAD > "$folder/packed/commit"
# What run.sh and the tests import. Nothing comes from the machine's own packages but CUDA and cuDNN.
mapfile -t packages < <("$python" - <<'P'
import tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
extras = project["optional-dependencies"]
print(*project["dependencies"], *extras["server"], "nvidia-ml-py", "onnx", "onnxruntime-gpu", "pytest", sep="\n")
P
)
platforms=(--platform manylinux2014_x86_64)
for glibc in 17 27 28 34; do platforms+=(--platform "manylinux_2_${glibc}_x86_64"); done
site=$folder/packed/site
if [[ ! -d $site ]]; then
  rm -rf "$folder/new"
  "$python" -m pip install --quiet --target "$folder/new" --only-binary=:all: --constraint constraints.txt \
    --implementation cp --python-version "$version" "${platforms[@]}" "${packages[@]}"
  # The provider for TensorRT is not measured.
  rm -f "$folder/new/onnxruntime/capi/libonnxruntime_providers_tensorrt.so"
  mv "$folder/new" "$site"
fi
rm -f "$folder"/part-*
tar -C "$folder/packed" -c . | xz -T0 | split -b 55M - "$folder/part-"
cat "$folder"/part-* | sha256sum | cut -d' ' -f1 > "$folder/SHA256"
ls -l "$folder"
