"""mosec: an HTTP server in Rust, and Python processes that it sends batches to.

As in mosec's examples, photographs are decoded in processes of their own, before the process that runs batches.
"""

import os

import numpy as np
from mosec import Server, Worker
from numpy.typing import NDArray

from network import MAX_BATCH, PATH, network, options

_WAIT_MS = 1
_TIMEOUT_MS = 60_000


class Decode(Worker):
    """Turns the bodies of requests into rows."""

    def __init__(self) -> None:
        super().__init__()
        self._network = network()

    def deserialize(self, data: bytes) -> bytes:
        """Takes a body as it is."""
        return bytes(data)

    def forward(self, data: bytes) -> NDArray[np.uint8]:
        """Returns the row of a body."""
        return self._network.row(data)


class Classify(Worker):
    """Runs batches of rows."""

    resp_mime_type = "application/octet-stream"

    def __init__(self) -> None:
        super().__init__()
        self._network = network()

    def deserialize(self, data: bytes) -> NDArray[np.uint8]:
        """Returns the row of a body, if no process before this one has done it."""
        return self._network.row(data)

    def serialize(self, data: bytes) -> bytes:
        """Sends the probabilities as they are."""
        return data

    def forward(self, data: list[NDArray[np.uint8]]) -> list[bytes]:
        """Returns the probabilities of each row."""
        return [row.tobytes() for row in self._network.run(data)]


if __name__ == "__main__":
    given = options(__doc__)
    os.environ |= {"MOSEC_ADDRESS": "127.0.0.1", "MOSEC_PORT": str(given.port), "MOSEC_TIMEOUT": str(_TIMEOUT_MS)}
    server = Server()
    if network().takes_photographs:
        server.append_worker(Decode, num=len(os.sched_getaffinity(0)), route=PATH)
    server.append_worker(Classify, max_batch_size=MAX_BATCH, max_wait_time=_WAIT_MS, route=PATH)
    server.run()
