"""Measures the memory of a load: through private copies of the files, as the server loads, against loading by path.

Each way runs in a process of its own, which loads the ONNX file of a version and runs it once. Targets: after the load,
at most 1.15 times the resident memory of loading by path; at the peak, at most the size of the file more. ONNX Runtime
maps external data that it loads by path, but copies data that it gets in memory: then the peak may be twice the size
higher.

    python bench/load_memory.py --model resnet152
"""

import argparse
import contextlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import harness
import onnx

from cnnserve.process import heap
from cnnserve.repository import onnx_files, version_files
from cnnserve.runtime.session import Session

WAYS = ("path", "copy")
RESIDENT = 1.15
# Pages of code and of the allocator differ from run to run by a few MiB.
NOISE_MIB = 8


def main() -> int:
    """Measures the model with its weights in the ONNX file, and beside it. Returns the exit status: 0 if all passed."""
    parser = argparse.ArgumentParser(description="Measure the memory of a load.")
    parser.add_argument("--model", default="resnet152", help="model to measure (default: %(default)s)")
    parser.add_argument("--no-result", action="store_true", help="do not write to bench/results")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    harness.add_repository(parser)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(_load(options.way, options.file)))
        return 0
    cells = []
    with harness.exported([options.model], options.repository) as root, tempfile.TemporaryDirectory() as folder:
        version = root / options.model / "1"
        cells.append(_measured("inside", version / harness.manifest_in(version).onnx.file, times=1))
        cells.append(_measured("external", _with_external_data(cells[0]["file"], Path(folder)), times=2))
    for cell in cells:
        cell["file"] = str(cell["file"].name)
    if not options.no_result:
        harness.write_result("load_memory", {"model": options.model, "cells": cells})
    return 0 if all(cell["passed"] for cell in cells) else 1


def _measured(weights: str, file: Path, times: int) -> dict[str, Any]:
    """Returns the memory of each way. `times`: by how many sizes of the files the peak may be higher."""
    size = sum(path.stat().st_size for path in file.parent.iterdir() if path.stem == file.stem) / 2**20
    ways = {}
    for way in WAYS:
        command = [sys.executable, __file__, "--way", way, "--file", str(file)]
        ways[way] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    before, now = ways["path"], ways["copy"]
    fits = now["peak_mib"] <= before["peak_mib"] + times * size + NOISE_MIB
    passed = fits and now["resident_mib"] <= RESIDENT * before["resident_mib"]
    print(f"weights {weights}, {size:.0f} MiB")
    rows = [(way, *map(round, memory.values())) for way, memory in ways.items()]
    print(harness.table(("way", "resident MiB", "peak MiB"), rows))
    limits = f"resident <= {RESIDENT} times, peak <= {times} x {size:.0f} MiB more"
    print(f"  {harness.verdict(passed=passed):<6}  {limits}", flush=True)
    return {"weights": weights, "file": file, "size_mib": size, "ways": ways, "passed": passed}


def _with_external_data(file: Path, folder: Path) -> Path:
    target = folder / "model.onnx"
    onnx.save_model(onnx.load(file), target, save_as_external_data=True, location="model.data")
    return target


def _load(way: str, file: Path) -> dict[str, float]:
    """Loads a file and returns the memory of this process, after the load and at the peak, with that of the copies."""
    peak = 0.0
    if way == "path":
        session = Session(file)
    else:
        files = version_files.of(file.parent)
        with files, contextlib.closing(onnx_files.load(files, file.name, None)) as model:
            session = Session(model)
            # A memfd counts as resident only where it is mapped, but takes memory all the same.
            unmapped = model.size / 2**20 - _status("RssShmem") if model.model.path else 0.0
            peak = _status("VmHWM") + unmapped
    session.run(session.inputs[0].zeros(1))
    heap.trim()
    return {"resident_mib": _status("VmRSS"), "peak_mib": max(peak, _status("VmHWM"))}


def _status(name: str) -> float:
    return int(re.findall(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[0]) / 1024


if __name__ == "__main__":
    sys.exit(main())
