"""MLServer: a runtime of its own over the Open Inference Protocol, with adaptive batching.

It runs in the server's process (`parallel_workers` 0), which is faster here than a process beside it.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

from network import MAX_BATCH, network, options

_WAIT_S = 0.001


class Runtime(MLModel):
    """Runs batches of tensors or image files."""

    async def load(self) -> bool:
        """Opens the model."""
        self._network = network()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Returns the probabilities of each row."""
        given = payload.inputs[0]
        if given.datatype == "BYTES":
            rows = [self._network.row(file) for file in given.data]
        else:
            rows = list(NumpyCodec.decode_input(given).astype(np.uint8, copy=False))
        output = NumpyCodec.encode_output("probabilities", self._network.run(rows))
        return InferenceResponse(model_name=self.name, outputs=[output])


if __name__ == "__main__":
    given = options(__doc__)
    server = {"host": "127.0.0.1", "http_port": 0, "grpc_port": given.port, "metrics_endpoint": None}
    server |= {"parallel_workers": 0, "debug": False}
    model = {"name": given.folder.parent.name, "implementation": "mlserver_server.Runtime"}
    model |= {"max_batch_size": MAX_BATCH, "max_batch_time": _WAIT_S}
    # The working directory is a temporary one.
    Path("settings.json").write_text(json.dumps(server))
    Path("model-settings.json").write_text(json.dumps(model))
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    command = str(Path(sys.executable).with_name("mlserver"))
    os.execv(command, [command, "start", "."])
