#!/usr/bin/env bash
# Measures cnnserve on an NVIDIA GPU within 9 minutes, or rehearses that on CPUs; README.md beside it says how.
#   run.sh --models DIR --output DIR [--provider cpu] [--parts tests,plain,instances,throughput,tail,ceiling,cores]
# SITE: folder of the packages that prepare.sh has packed. PYTHON: the interpreter (default: python3).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$(dirname "$here")")
python=${PYTHON:-python3}
export PYTHONPATH="${SITE:+$SITE:}$root/bench:$root/server:$root/export:$root/client${PYTHONPATH:+:$PYTHONPATH}"
export ORT_DISABLE_TELEMETRY=1 PYTHONUNBUFFERED=1
# ONNX Runtime looks for the libraries of NVIDIA's wheels beside itself only. The loader needs their folders at its start.
libraries=$("$python" -c '
import glob, sys
print(":".join(path for entry in sys.path if entry for path in sorted(glob.glob(f"{entry}/nvidia/*/lib"))))
')
[[ -z $libraries ]] || export LD_LIBRARY_PATH="$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
# Whatever hangs: after 9 minutes all processes are ended. What was measured is kept.
exec timeout --kill-after 5 540 "$python" "$here/main.py" "$@"
