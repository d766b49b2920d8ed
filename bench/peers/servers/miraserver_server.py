"""miraserver: an HTTP server in Rust, and a Python process that it sends batches to."""

import os
import sys
from pathlib import Path

import numpy as np
from lite_server import LitAPI, Response
from numpy.typing import NDArray

from network import MAX_BATCH, network, options

_SERVER = """\
server: {{http_port: {port}, host: 127.0.0.1}}
model_repository: {{path: models}}
orchestration: {{control_mode: explicit, load_models: [{model}]}}
logging: {{level: warn}}
"""
_MODEL = f"max_batch_size: {MAX_BATCH}\nbatch_timeout: 0.001\naccelerator: cpu\nrequest_timeout: 60.0\n"


class Classifier(LitAPI):
    """Runs batches of tensors or image files, which come as raw bodies."""

    def setup(self, device: str) -> None:  # noqa: ARG002 - miraserver names it
        """Opens the model in the process that runs it."""
        self._network = network()

    def decode_request(self, request: bytes) -> NDArray[np.uint8]:
        """Returns the row of a request."""
        return self._network.row(bytes(request))

    def batch(self, inputs: list[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
        """Returns the rows as they are."""
        return inputs

    def predict(self, x: list[NDArray[np.uint8]] | NDArray[np.uint8]) -> NDArray[np.float32]:
        """Returns the probabilities of a batch, or of a request that runs alone."""
        return self._network.run(x) if isinstance(x, list) else self._network.run([x])[0]

    def unbatch(self, output: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Returns the probabilities of each row."""
        return list(output)

    def encode_response(self, output: NDArray[np.float32]) -> Response:
        """Returns the response for a row."""
        return Response(output.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    given = options(__doc__)
    # The working directory is a temporary one.
    version = Path("models") / given.folder.parent.name / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text("from miraserver_server import Classifier\n")
    (version / "config.yaml").write_text(_MODEL)
    Path("server.yaml").write_text(_SERVER.format(port=given.port, model=given.folder.parent.name))
    os.environ |= {"PYTHONPATH": str(Path(__file__).parent), "LITESERVER_PYTHON": sys.executable}
    command = [sys.executable, "-m", "lite_server", "serve", "--config", "server.yaml", "--no-grpc", "--no-metrics"]
    os.execv(command[0], command)
