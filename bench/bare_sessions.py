"""Holds plain sessions of several models in one process, so that its memory can be compared with that of a server.

Each line of standard input is a batch size in JSON, such as `{"batch": 16}`; all models run it once. The answer is
`{}`. It is also printed when all sessions are open and have run one row.
"""

import json
import sys

import numpy as np
import onnxruntime as ort


def main() -> int:
    """Runs `bare_sessions.py THREADS ONNX_FILE...` until standard input ends and returns the exit status."""
    threads, *files = sys.argv[1:]
    options = ort.SessionOptions()
    options.intra_op_num_threads = int(threads)
    sessions = [ort.InferenceSession(file, options, providers=["CPUExecutionProvider"]) for file in files]
    _run(sessions, 1)
    for line in sys.stdin:
        _run(sessions, json.loads(line)["batch"])
    return 0


def _run(sessions: list[ort.InferenceSession], batch: int) -> None:
    for session in sessions:
        spec = session.get_inputs()[0]
        session.run(None, {spec.name: np.zeros((batch, *spec.shape[1:]), np.uint8)})
    print("{}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
