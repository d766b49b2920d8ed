"""The best plain ONNX Runtime layout on this machine, by exhaustive search, beside what the server reaches.

Plain layouts: loops, each with a batch of its own, on one session of some threads, with at most 16 rows under way. The
server has 16 requests in flight: with its default layout, and with the one that `cnnserve tune` finds. Everything is
measured in turns.

    python bench/layouts.py --models resnet18,resnet50,googlenet,alexnet --rounds 4 --seconds 5
"""

import argparse
import contextlib
import functools
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import harness
import numpy as np
from harness import Server
from machine import cores

from cnnserve.datatypes import Rows
from cnnserve.runtime.session import Session, SessionOptions

# Of the best plain layout.
TARGET = 0.97
# The p99 with the layout of `cnnserve tune`, beside that of the default.
WORST_P99 = 1.2
IN_FLIGHT = 16

Plain = tuple[int, int, int]


def main() -> int:
    """Runs the benchmark and returns the exit status: 0 if each model reaches its targets."""
    parser = argparse.ArgumentParser(description="Compare layouts of the server with the best plain layout.")
    harness.add_models(parser, ["resnet18", "resnet50", "googlenet", "alexnet"])
    harness.add_rounds(parser, 4, 5.0)
    harness.add_repository(parser)
    parser.add_argument("--budget", default="60s", help="budget of cnnserve tune (default: %(default)s)")
    options = parser.parse_args()
    results: dict[str, Any] = {}
    passed = True
    with harness.exported(options.models, options.repository) as root:
        for model in options.models:
            results[model] = _measure(root, model, options)
            passed = _print(model, results[model]) and passed
    harness.write_result("layouts", {"seconds": options.seconds, "rounds": options.rounds, "models": results})
    return 0 if passed else 1


def plain_layouts(threads: int) -> list[Plain]:
    """Returns loops, threads of a session and rows of a batch, with at most `IN_FLIGHT` rows under way."""
    counts = sorted({1 << power for power in range(threads.bit_length()) if 1 << power <= threads} | {threads})
    return [
        (loops, width, batch)
        for loops in counts
        for width in sorted({1, threads // loops, threads - loops + 1})
        for batch in (1, 2, 4, 8, 16)
        if loops * batch <= IN_FLIGHT and loops + width - 1 <= threads
    ]


@functools.lru_cache(maxsize=3)
def plain_session(path: Path, threads: int, *, spin: bool) -> Session:
    """Returns a session of ONNX Runtime; the last ones are kept open."""
    return Session(path, SessionOptions(threads, spin=spin))


def zeros(session: Session, batch: int) -> Rows:
    """Returns a batch for a session."""
    spec = session.inputs[0]
    return np.zeros((batch, *spec.shape[1:]), spec.zeros(1).dtype)


def plain_rate(path: Path, plain: Plain, seconds: float) -> float:
    """Returns the images per second of a plain layout."""
    loops, width, batch = plain
    session = plain_session(path, width, spin=loops == 1)
    rows = zeros(session, batch)
    session.run(rows)
    done = [0] * loops
    end = time.perf_counter() + seconds

    def loop(number: int) -> None:
        while time.perf_counter() < end:
            session.run(rows)
            done[number] += batch

    began = time.perf_counter()
    threads = [threading.Thread(target=loop, args=(number,)) for number in range(loops)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) / (time.perf_counter() - began)


def _measure(root: Path, model: str, options: argparse.Namespace) -> dict[str, Any]:
    path = root / model / "1" / "model.onnx"
    body = harness.infer_request(harness.manifest_of(root, model), model).SerializeToString()
    plain: dict[Plain, list[float]] = {layout: [] for layout in plain_layouts(cores())}
    served: dict[str, list[dict[str, float]]] = {"default": [], "tuned": []}
    with contextlib.ExitStack() as stack:
        folders = {name: stack.enter_context(_copy(root, model)) for name in served}
        command = [sys.executable, "-m", "cnnserve", "tune", str(folders["tuned"] / model), "--budget", options.budget]
        tuned = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        servers = {name: stack.enter_context(harness.serving(folder)) for name, folder in folders.items()}
        for number in range(options.rounds):
            for name in harness.in_turn(served, number):
                served[name].append(_load(servers[name], body, options.seconds))
            for layout in harness.in_turn(plain, number):
                plain[layout].append(plain_rate(path, layout, options.seconds))
    return {
        "plain": {" ".join(map(str, layout)): harness.median(rates) for layout, rates in plain.items()},
        "served": {name: harness.medians(cells) for name, cells in served.items()},
        "tune": tuned,
    }


@contextlib.contextmanager
def _copy(root: Path, model: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="cnnserve-bench-") as folder:
        shutil.copytree(root / model, Path(folder) / model)
        yield Path(folder)


def _load(server: Server, body: bytes, seconds: float) -> dict[str, float]:
    return harness.load(
        server.address, [body], in_flight=IN_FLIGHT, seconds=seconds, server_pid=server.pid, warm_up_s=min(2, seconds)
    )


def _print(model: str, result: Mapping[str, Any]) -> bool:
    plain, served = result["plain"], result["served"]
    best = max(plain, key=lambda layout: float(plain[layout]))
    print(f"\n{model}, {cores()} threads, {IN_FLIGHT} in flight; best plain layout (loops threads batch): {best}")
    rows = [[f"plain {layout}", f"{rate:,.1f}", ""] for layout, rate in plain.items()]
    rows += [[name, f"{cell['rate']:,.1f}", f"{cell['p99_ms']:,.1f}"] for name, cell in served.items()]
    print(harness.table(["layout", "images/s", "p99 ms"], rows))
    ratio = served["tuned"]["rate"] / plain[best]
    worse = served["tuned"]["p99_ms"] / served["default"]["p99_ms"]
    fast, prompt = ratio >= TARGET, worse <= WORST_P99
    default = served["default"]["rate"] / plain[best]
    word = harness.verdict(passed=fast)
    print(f"  {word:<6}  tuned >= {TARGET} of the best plain layout: {ratio:.3f} (default: {default:.3f})")
    print(f"  {harness.verdict(passed=prompt):<6}  p99 <= {WORST_P99} times that of the default: {worse:.2f}")
    sys.stdout.flush()
    return fast and prompt


if __name__ == "__main__":
    sys.exit(main())
