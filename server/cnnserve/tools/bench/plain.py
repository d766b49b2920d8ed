"""Plain ONNX Runtime on this machine: one session with all CPU threads in a loop, without a server.

    python -m cnnserve.tools.bench.plain model.onnx --seconds 1

It runs in a process of its own, so that its threads and its memory are gone when the server is loaded.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_BATCHES = (1, 4, 16)
_START_S = 300.0


def measure(model: Path, seconds: float) -> dict[int, float] | str:
    """Returns images/s by batch size, or a text that says why there are none."""
    command = [sys.executable, "-P", "-m", __name__, str(model), "--seconds", str(seconds)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_START_S, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        return f"ONNX Runtime did not end within {_START_S:g} s"
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        return lines[-1] if lines else f"ONNX Runtime ended with status {done.returncode}"
    return {int(size): rate for size, rate in json.loads(done.stdout).items()}


def model_file(repository: Path, model: str, version: str) -> Path | None:
    """Returns the ONNX file of a version, None if it is not at hand."""
    folder = repository / model / version
    file = folder / "model.onnx"
    with contextlib.suppress(OSError):  # without a manifest, the name is the usual one
        manifest = (folder / "manifest.json").read_text()
        try:
            file = folder / json.loads(manifest)["onnx"]["file"]
        except (ValueError, KeyError, TypeError):
            return None
    return file if file.is_file() else None


def main() -> int:
    """Prints images/s by batch size as JSON and returns the exit status."""
    from cnnserve.process.cpu import cpu_budget  # noqa: PLC0415 - only this process needs ONNX Runtime
    from cnnserve.runtime.session import Session, SessionOptions  # noqa: PLC0415

    parser = argparse.ArgumentParser(description="Run an ONNX model in a loop.")
    parser.add_argument("model", type=Path, help="ONNX file")
    parser.add_argument("--seconds", type=float, required=True, help="seconds for each batch size")
    options = parser.parse_args()
    session = Session(options.model, SessionOptions(threads=cpu_budget()))
    fixed = session.inputs[0].shape[0]
    batches = (fixed,) if fixed > 0 else _BATCHES
    rates = {batch: _rate(session, batch, options.seconds) for batch in batches}
    sys.stdout.write(json.dumps(rates))
    return 0


def _rate(session: Any, batch: int, seconds: float) -> float:
    rows = session.inputs[0].zeros(batch)
    session.run(rows)
    count, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds or count < 2:
        session.run(rows)
        count += 1
    return count * batch / elapsed


if __name__ == "__main__":
    sys.exit(main())
