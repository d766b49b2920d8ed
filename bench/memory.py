"""What stays in memory: after many reloads, after many failed loads, and under batches of every size.

`reload` and `failed` ask a real server with LoadModel. The memory is the server's PSS.

    python bench/memory.py                      # all three, 200 reloads, 50 failures, 10 minutes
    python bench/memory.py --parts mixed --minutes 1
"""

import argparse
import contextlib
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

from cnnserve.wire import classifier_pb2

TOLERANCE = 1.05
# Looked at after so many loads; the least value within so long counts, because what is let go goes a little later.
EVERY = 10
SETTLE_S = 1.0
PARTS = ("reload", "failed", "mixed")
CONTROL = ("--model-control-mode", "explicit", "--allow-model-control")
SAMPLE_S = 1.0
MIXED_IN_FLIGHT = 4
_SHOWN = 10


@dataclass(frozen=True)
class Loader:
    """Loads a model anew after its files were touched; True where that worked."""

    load: Callable[[], bool]
    pid: int


def main() -> int:
    """Runs the parts asked for; 0 where all of them stayed within the tolerance."""
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
    parser = argparse.ArgumentParser(description="Memory after reloads, after failures, under mixed batches.")
    parser.add_argument("--parts", type=lambda text: text.split(","), default=list(PARTS), help="separated by commas")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--reloads", type=int, default=200)
    parser.add_argument("--failures", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=10.0, help="of mixed batches")
    parser.add_argument("--no-result", action="store_true", help="write nothing into bench/results")
    parser.add_argument("--repository", type=Path, help="where exported models are, or shall stay")
    return parser.parse_args()


def _run(part: str, repository: Path, options: argparse.Namespace) -> dict[str, object]:
    print(f"\n{part}: {options.model}")
    if part == "mixed":
        samples = _mixed(repository, options.model, options.minutes)
        # Two thirds to settle in, one to be level in.
        before, after = max(samples[len(samples) // 3 : -len(samples) // 3]), max(samples[-len(samples) // 3 :])
    else:
        with _loader(repository, options.model) as loader:
            if part == "failed":
                _spoil(repository / options.model / "1")
            count = options.reloads if part == "reload" else options.failures
            samples = _repeat(loader, repository / options.model / "1", count, works=part == "reload")
        before, after = samples[0], samples[-1]
    passed = after <= TOLERANCE * before
    step = max(1, len(samples) // _SHOWN)
    print("  MiB: " + " ".join(f"{value:.0f}" for value in samples[::step]))
    print(
        f"  {harness.verdict(passed=passed):<6}  {before:.1f} -> {after:.1f} MiB ({after / before - 1:+.1%})",
        flush=True,
    )
    return {"samples_mib": samples, "before_mib": before, "after_mib": after, "passed": passed}


def _repeat(loader: Loader, version: Path, count: int, *, works: bool) -> list[float]:
    """Memory after every tenth of `count` loads, which all have to work, or all to fail."""
    samples = []
    for number in range(1, count + 1):
        # Other mtimes are changed files.
        moment = time.time_ns() + number
        os.utime(version / "model.onnx", ns=(moment, moment))
        if loader.load() != works:
            raise SystemExit(f"load {number} {'failed' if works else 'worked'}")
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
    """A manifest whose golden image cannot be answered: the load fails at its very end."""
    path = version / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["golden"]["probabilities"] = np.roll(manifest["golden"]["probabilities"], 1).tolist()
    path.write_text(json.dumps(manifest))


def _mixed(repository: Path, model: str, minutes: float) -> list[float]:
    """The server's memory, sampled under requests of 1 to 32 images in random order."""
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
    """A repository of one model whose files may be touched."""
    with tempfile.TemporaryDirectory(prefix="cnnserve-bench-") as folder:
        shutil.copytree(root / model, Path(folder) / model)
        yield Path(folder)


if __name__ == "__main__":
    sys.exit(main())
