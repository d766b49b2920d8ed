"""Plain ONNX Runtime with IO binding and, on a GPU, CUDA graphs: one loop, or several with a session each.

Each line of standard input is a command in JSON: `{"batch": 8, "seconds": 1}`. Each result is one line of JSON.
`copied` are the images/s with a copy of every batch to the device and of its probabilities back, as a server needs
them; `resident` are those with the same batch, which stays on the device.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import machine
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from cnnserve.model_config.providers import Provider, cuda_options
from cnnserve.runtime import cuda
from cnnserve.runtime.session import Session, SessionOptions

_WARM_UP_RUNS = 3
_DTYPES = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32}


class Loop:
    """A session with its buffers for one batch size, and a thread, because CUDA graphs belong to a thread."""

    def __init__(self, model: Path, provider: Provider, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        self._graphs = provider.graphs
        self._device = provider.kind
        self._session = ort.InferenceSession(str(model), options, providers=provider.chain, enable_fallback=0)
        self._thread = ThreadPoolExecutor(1)

    def bind(self, batch: int) -> None:
        """Makes the buffers and runs them some times, so that the CUDA graph of this batch size is captured."""
        self._thread.submit(self._bind, batch).result()

    def start(self, run: Callable[["Loop"], object], end: float) -> "Future[list[float]]":
        """Calls `run` again and again until `end`, a time of `time.perf_counter`. Returns the time of each call."""
        return self._thread.submit(self._repeat, run, end)

    def _repeat(self, run: Callable[["Loop"], object], end: float) -> list[float]:
        times: list[float] = []
        now = time.perf_counter()
        while now < end:
            run(self)
            after = time.perf_counter()
            times.append(after - now)
            now = after
        return times

    def _bind(self, batch: int) -> None:
        spec, result = self._session.get_inputs()[0], self._session.get_outputs()[0]
        values = np.random.default_rng(0).random((batch, *spec.shape[1:])) * 255
        self._rows = values.astype(_DTYPES[spec.type])
        if self._device == "cuda":
            cuda.pin(self._rows, ort.cuda_version)
        self._source = ort.OrtValue.ortvalue_from_numpy(self._rows, self._device, 0)
        shape = [batch, *result.shape[1:]]
        self._result = ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, self._device, 0)
        self._binding = self._session.io_binding()
        self._binding.bind_ortvalue_input(spec.name, self._source)
        self._binding.bind_ortvalue_output(result.name, self._result)
        self._options = ort.RunOptions()
        if self._graphs:
            self._options.add_run_config_entry("gpu_graph_id", str(batch))
        for _ in range(_WARM_UP_RUNS):
            self.resident()
        if not np.allclose(self.copied().sum(axis=1), 1, atol=1e-2):
            raise SystemExit(f"a batch of {batch} gave rows that are no probabilities")

    def resident(self) -> None:
        """Runs the batch that is on the device."""
        self._session.run_with_iobinding(self._binding, self._options)

    def copied(self) -> NDArray[np.float32]:
        """Copies the batch to the device, runs it, and returns its probabilities."""
        self._source.update_inplace(self._rows)
        self.resident()
        probabilities: NDArray[np.float32] = self._result.numpy()
        return probabilities


def main() -> int:
    """Runs commands until standard input ends, then returns the exit status."""
    parser = argparse.ArgumentParser(description="Run an ONNX model in loops. Commands come from standard input.")
    parser.add_argument("model", type=Path, help="ONNX file")
    parser.add_argument("--provider", choices=("cuda", "cpu"), required=True, help="where to run")
    parser.add_argument("--loops", type=int, default=1, help="loops, each with its session (default: %(default)s)")
    options = parser.parse_args()
    provider = (
        Provider("cuda", 0, cuda_options({"enable_cuda_graph": "1"})) if options.provider == "cuda" else Provider()
    )
    # Loads NVIDIA's libraries, and fails if a node is not on the GPU; ONNX Runtime would run it elsewhere in silence.
    Session(options.model, SessionOptions(provider=provider))
    threads = max(1, machine.cores() // options.loops) if options.provider == "cpu" else 1
    loops = [Loop(options.model, provider, threads) for _ in range(options.loops)]
    print("{}", flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        print(json.dumps(measure(loops, command["batch"], command["seconds"])), flush=True)
    return 0


def measure(loops: Sequence[Loop], batch: int, seconds: float) -> dict[str, float]:
    """Returns images/s with and without copies, and the median time of a run with copies in ms."""
    for loop in loops:
        loop.bind(batch)
    resident, _ = _timed(loops, Loop.resident, seconds)
    copied, times = _timed(loops, Loop.copied, seconds)
    return {"copied": copied * batch, "resident": resident * batch, "copied_p50_ms": float(np.median(times)) * 1e3}


def _timed(loops: Sequence[Loop], run: Callable[[Loop], object], seconds: float) -> tuple[float, list[float]]:
    """Returns how many runs all loops make in a second, and the time of each run."""
    started = time.perf_counter()
    running = [loop.start(run, started + seconds) for loop in loops]
    times = [each for future in running for each in future.result()]
    return len(times) / (time.perf_counter() - started), times


if __name__ == "__main__":
    sys.exit(main())
