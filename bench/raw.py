"""Plain ONNX Runtime: `InferenceSession.run` in a loop, with ONNX Runtime's defaults except for the threads.

Each line of standard input is a command in JSON, such as `{"batch": 8, "seconds": 5}`. Each result is one line of JSON.
So the cells of this process can take turns with those of a server.
"""

import argparse
import json
import os
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort

from cnnserve.batching.percentile import percentile
from cnnserve.tools.load.clocks import busy_seconds, cpu_seconds


def main() -> int:
    """Runs commands until standard input ends, then returns the exit status."""
    parser = argparse.ArgumentParser(description="Run an ONNX model in a loop. Commands come from standard input.")
    parser.add_argument("model", type=Path, help="ONNX file")
    parser.add_argument("--threads", type=int, required=True, help="number of threads of one run")
    parser.add_argument(
        "--loops", type=int, default=1, help="number of loops that share the session (default: %(default)s)"
    )
    options = parser.parse_args()
    session_options = ort.SessionOptions()
    session_options.intra_op_num_threads = options.threads
    session = ort.InferenceSession(str(options.model), session_options, providers=["CPUExecutionProvider"])
    print("{}", flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        print(json.dumps(measure(session, command["batch"], command["seconds"], options.loops)), flush=True)
    return 0


def measure(session: ort.InferenceSession, batch: int, seconds: float, loops: int) -> dict[str, float]:
    """Returns images/s, latencies of a run in ms, and CPU times, over `loops` concurrent loops."""
    spec = session.get_inputs()[0]
    dtype = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32}[spec.type]
    shape = (batch, *spec.shape[1:])
    data = (np.random.default_rng(0).random(shape) * 255).astype(dtype)
    for _ in range(2):
        session.run(None, {spec.name: data})
    latencies: list[float] = []
    before = cpu_seconds(os.getpid()), busy_seconds()
    started = time.perf_counter()
    threads = [
        threading.Thread(target=_loop, args=(session, {spec.name: data}, started + seconds, latencies))
        for _ in range(loops - 1)
    ]
    for thread in threads:
        thread.start()
    _loop(session, {spec.name: data}, started + seconds, latencies)
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - started
    own_s, busy_s = cpu_seconds(os.getpid()) - before[0], busy_seconds() - before[1]
    rate = len(latencies) * batch / elapsed
    latencies.sort()
    return {
        "rate": rate,
        "p50_ms": percentile(latencies, 50) * 1e3,
        "p99_ms": percentile(latencies, 99) * 1e3,
        "cpu_us": own_s / elapsed / rate * 1e6,
        "other_cores": max(0.0, busy_s - own_s) / elapsed,
    }


def _loop(session: ort.InferenceSession, feed: dict[str, object], end: float, latencies: list[float]) -> None:
    now = time.perf_counter()
    while now < end:
        session.run(None, feed)
        after = time.perf_counter()
        latencies.append(after - now)
        now = after


if __name__ == "__main__":
    sys.exit(main())
