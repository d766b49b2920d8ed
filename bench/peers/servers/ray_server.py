"""Ray Serve with HAProxy and the options for throughput, as its guide to performance recommends.

Ray listens on every interface, so it runs only in a network that has none but loopback.
"""

import asyncio
import os
import signal
from pathlib import Path

# Ray reads them when it is imported.
os.environ |= {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_USAGE_STATS_ENABLED": "0"}

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

import ray
from network import MAX_BATCH, Network, options
from ray import serve

_STORE_BYTES = 100 * 2**20


@serve.deployment(max_ongoing_requests=4 * MAX_BATCH)
class Classifier:
    """One replica, which runs batches."""

    def __init__(self, folder: Path, threads: int) -> None:
        self._network = Network(folder, threads)

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=0.001)
    async def classify(self, rows: list[NDArray[np.uint8]]) -> list[bytes]:
        """Returns the probabilities of each row."""
        answers = await asyncio.to_thread(self._network.run, rows)
        return [answer.tobytes() for answer in answers]

    async def __call__(self, request: Request) -> Response:
        """Answers one request."""
        body = await request.body()
        is_image = not self._network.is_tensor(body)
        row = await asyncio.to_thread(self._network.row, body) if is_image else self._network.row(body)
        return Response(await self.classify(row), media_type="application/octet-stream")


if __name__ == "__main__":
    given = options(__doc__)
    # The working directory is a temporary one.
    small = {"object_store_memory": _STORE_BYTES, "_temp_dir": str(Path.cwd())}
    ray.init(num_cpus=os.cpu_count(), include_dashboard=False, log_to_driver=False, **small)
    serve.start(http_options={"host": "127.0.0.1", "port": given.port})
    serve.run(Classifier.bind(given.folder, given.threads))
    signal.pause()
