"""BentoML: a service with adaptive batching."""

import base64
import os
import sys
from pathlib import Path

import bentoml

from network import MAX_BATCH, PATH, network, options

_TIMEOUT_S = 60


@bentoml.service(workers=1, traffic={"timeout": _TIMEOUT_S}, logging={"access": {"enabled": False}})
class Classifier:
    """Runs batches of tensors or image files, which come as base64 in JSON."""

    def __init__(self) -> None:
        self._network = network()

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH, route=PATH)
    def infer(self, bodies: list[str]) -> list[str]:
        """Returns the probabilities for each body."""
        rows = [self._network.row(base64.b64decode(body)) for body in bodies]
        return [base64.b64encode(row.tobytes()).decode() for row in self._network.run(rows)]


if __name__ == "__main__":
    given = options(__doc__)
    # The working directory is a temporary one.
    os.environ |= {"BENTOML_HOME": str(Path.cwd() / "home"), "BENTOML_DO_NOT_TRACK": "1"}
    command = [str(Path(sys.executable).with_name("bentoml")), "serve", "bentoml_server:Classifier"]
    command += ["--host", "127.0.0.1", "--port", str(given.port), "--working-dir", str(Path(__file__).parent)]
    os.execv(command[0], command)
