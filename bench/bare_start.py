"""The least that a start can be: imports onnxruntime, hashes the files, opens the sessions, makes the self-test's runs.

Only the standard library, numpy and onnxruntime. Prints one line when it is done.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort


def main() -> int:
    """`bare_start.py THREADS VERSION_FOLDER...`."""
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
