"""Measures whether the server's memory grows: over many reloads, many failed loads, and with batches of every size.

The parts `reload` and `failed` call LoadModel of a real server. The memory is the server's PSS.

    python bench/memory.py                      # all three, 200 reloads, 50 failures, 10 minutes
    python bench/memory.py --parts mixed --minutes 1
"""

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
import harness
import machine
import numpy as np

from cnnserve.repository.manifest import digest, golden_bytes
from cnnserve.wire import classifier_pb2

TOLERANCE = 1.05
# Samples differ by this without any growth. One copy of LeNet-5 kept for each of 50 loads would be twice as much.
NOISE_MIB = 6.0
# The memory is measured after every tenth load. The server releases memory a little after the end of a load, so the
# smallest value within `SETTLE_S` counts.
EVERY = 10
SETTLE_S = 1.0
PARTS = ("reload", "failed", "mixed")
CONTROL = ("--model-control-mode", "explicit", "--allow-model-control")
SAMPLE_S = 1.0
MIXED_IN_FLIGHT = 4
_SHOWN = 10


@dataclass(frozen=True)
class Loader:
    """`load` loads a model again, after its files were touched, and returns whether it succeeded."""

    load: Callable[[], bool]
    pid: int


def main() -> int:
    """Runs the parts and returns the exit status: 0 if the memory of all parts stayed within the tolerance."""
    options = _options()
    results = {}
    with harness.exported([options.model], options.repository) as root:
        for part in options.parts:
            with _copy(root, options.model) as repository:
                results[part] = _run(part, repository, options)
    if not options.no_result:
        harness.write_result("memory", {"model": options.model, "parts": results})
    return 0 if all(result["passed"] for result in results.values()) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure memory over reloads, failed loads and mixed batches.")
    text = f"parts to run, separated by commas (default: {','.join(PARTS)})"
    parser.add_argument("--parts", type=lambda value: value.split(","), default=list(PARTS), help=text)
    parser.add_argument("--model", default="resnet18", help="model to measure (default: %(default)s)")
    parser.add_argument("--reloads", type=int, default=200, help="number of reloads (default: %(default)s)")
    parser.add_argument("--failures", type=int, default=50, help="number of failed loads (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=10.0, help="minutes of mixed batches (default: %(default)s)")
    parser.add_argument("--no-result", action="store_true", help="do not write to bench/results")
    harness.add_repository(parser)
    return parser.parse_args()


def _run(part: str, repository: Path, options: argparse.Namespace) -> dict[str, object]:
    print(f"\n{part}: {options.model}")
    if part == "mixed":
        samples = _mixed(repository, options.model, options.minutes)
        # The memory may grow in the first two thirds. The maximum of the last third is compared with the second one.
        before, after = max(samples[len(samples) // 3 : -len(samples) // 3]), max(samples[-len(samples) // 3 :])
    else:
        with _loader(repository, options.model) as loader:
            if part == "failed":
                _spoil(repository / options.model / "1")
            count = options.reloads if part == "reload" else options.failures
            samples = _repeat(loader, repository / options.model / "1", count, works=part == "reload")
        before, after = samples[0], samples[-1]
    passed = after <= max(TOLERANCE * before, before + NOISE_MIB)
    step = max(1, len(samples) // _SHOWN)
    print("  MiB: " + " ".join(f"{value:.0f}" for value in samples[::step]))
    print(
        f"  {harness.verdict(passed=passed):<6}  {before:.1f} -> {after:.1f} MiB ({after / before - 1:+.1%})",
        flush=True,
    )
    return {"samples_mib": samples, "before_mib": before, "after_mib": after, "passed": passed}


def _repeat(loader: Loader, version: Path, count: int, *, works: bool) -> list[float]:
    """Returns the memory after every tenth of `count` loads. All must succeed if `works`, otherwise all must fail."""
    samples = []
    for number in range(1, count + 1):
        # The server takes files with other mtimes for changed files.
        moment = time.time_ns() + number
        os.utime(version / "model.onnx", ns=(moment, moment))
        if loader.load() != works:
            raise SystemExit(f"load {number} {'failed' if works else 'succeeded, but should have failed'}")
        if number % EVERY == 0:
            samples.append(_settled(loader.pid))
    return samples


def _settled(pid: int) -> float:
    end = time.monotonic() + SETTLE_S
    least = machine.memory_mib(pid)
    while time.monotonic() < end:
        time.sleep(0.1)
        least = min(least, machine.memory_mib(pid))
    return least


def _spoil(version: Path) -> None:
    """Changes the golden probabilities in the manifest, so that a load fails in its last step, the self-test."""
    path = version / "manifest.json"
    manifest = json.loads(path.read_text())
    golden = version / manifest["golden"]["probabilities"]
    shape = (len(manifest["golden"]["images"]), manifest["class_count"])
    golden.write_bytes(golden_bytes(np.roll(np.fromfile(golden, "<f4").reshape(shape), 1, axis=1)))
    manifest["files"][golden.name] = dataclasses.asdict(digest(golden))
    path.write_text(json.dumps(manifest))


def _mixed(repository: Path, model: str, minutes: float) -> list[float]:
    """Returns samples of the server's memory during requests of 1 to the maximum of images, in random order."""
    manifest = harness.manifest_of(repository, model)
    sizes = np.random.default_rng(0).permutation(np.repeat(np.arange(1, manifest.max_batch_size + 1), 2))
    bodies = [harness.infer_request(manifest, model, int(size)).SerializeToString() for size in sizes]
    samples = []
    with harness.serving(repository) as server, ThreadPoolExecutor(1) as pool:
        load = pool.submit(
            harness.load, server.address, bodies, in_flight=MIXED_IN_FLIGHT, seconds=minutes * 60, server_pid=server.pid
        )
        while not load.done():
            samples.append(machine.memory_mib(server.pid))
            time.sleep(SAMPLE_S)
        print(f"  {load.result()['requests']:,.0f} requests of 1 to {max(sizes)} images")
    return samples


@contextlib.contextmanager
def _loader(repository: Path, model: str) -> Iterator[Loader]:
    with harness.serving(repository, *CONTROL, "--load-model", model) as server:

        def load() -> bool:
            request = classifier_pb2.LoadModelRequest(model=model)
            try:
                server.call("cnnserve.v1.Classifier/LoadModel", request, classifier_pb2.LoadModelResponse)
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                    raise
                return False
            return True

        yield Loader(load, server.pid)


@contextlib.contextmanager
def _copy(root: Path, model: str) -> Iterator[Path]:
    """Yields a model repository with a copy of one model, so that its files may be changed."""
    with tempfile.TemporaryDirectory(prefix="cnnserve-bench-") as folder:
        shutil.copytree(root / model, Path(folder) / model)
        yield Path(folder)


if __name__ == "__main__":
    sys.exit(main())
