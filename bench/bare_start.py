"""Does only what every start must do: imports onnxruntime, hashes files, opens sessions, makes the self-test's runs.

It uses the standard library, numpy and onnxruntime only, and prints "ready" at the end.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort


def main() -> int:
    """Runs `bare_start.py THREADS VERSION_FOLDER...` and returns the exit status."""
    threads, *folders = sys.argv[1:]
    for folder in map(Path, folders):
        manifest = json.loads((folder / "manifest.json").read_text())
        for name in manifest["files"]:
            with (folder / name).open("rb") as file:
                hashlib.file_digest(file, "sha256")
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(threads)
        session = ort.InferenceSession(str(folder / manifest["onnx"]["file"]), options)
        spec = session.get_inputs()[0]
        for batch in (1, 3):
            session.run(None, {spec.name: np.zeros((batch, *spec.shape[1:]), np.uint8)})
    print("ready", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
