"""LitServe: FastAPI in front, and a process that runs batches."""

import base64
from typing import Any

import litserve as ls
import numpy as np
from numpy.typing import NDArray

from network import MAX_BATCH, PATH, network, options

_WAIT_S = 0.001
_TIMEOUT_S = 60


class Classifier(ls.LitAPI):
    """Runs batches of tensors or image files, which come as base64 in JSON."""

    def setup(self, device: str) -> None:  # noqa: ARG002 - LitServe names it
        """Opens the model in the process that runs it."""
        self._network = network()

    def decode_request(self, request: dict[str, str]) -> NDArray[np.uint8]:
        """Returns the row of a request."""
        return self._network.row(base64.b64decode(request["body"]))

    def predict(self, x: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Returns the probabilities of a batch."""
        return self._network.run(list(x))

    def encode_response(self, output: NDArray[np.float32]) -> dict[str, Any]:
        """Returns the response for a row."""
        return {"probabilities": base64.b64encode(output.tobytes()).decode()}


if __name__ == "__main__":
    given = options(__doc__)
    api = Classifier(max_batch_size=MAX_BATCH, batch_timeout=_WAIT_S, api_path=PATH)
    server = ls.LitServer(api, accelerator="cpu", timeout=_TIMEOUT_S)
    server.run(host="127.0.0.1", port=given.port, generate_client_file=False, log_level="warning")
