"""Does it pay to have one wide session for lone requests and narrow ones for full queues? Outside of the server.

Threads take rows from a queue that clients keep at a number of requests in flight, as the server's instances do:

- `wide`: one instance, one session with all threads: the server's default layout.
- `narrow`: as many instances as cores, one session with one thread: the best layout of ResNet-50 under load.
- `crowded`: one session with all threads; a lone request has it alone, a queue as many runs as cores.
- `elastic`: a wide session for a lone request, a narrow one for a queue.
- `shared`: the same, with weights that both sessions share. Python cannot give sessions a common container of packed
  weights (`CreateSessionWithPrepackedWeightsContainer` is a function of C), and `add_initializer` shares only what the
  optimisation leaves as it is. So the network is optimised once, with its weights in a file beside it, which both
  sessions map into memory, and they do not pack weights again. (ONNX Runtime 1.32 crashes if two ResNets read their
  weights from bytes in its own format, `session.use_ort_model_bytes_for_initializers`.)

A lone request is one that arrives while nothing runs and nothing else waits. Each variant has a process of its own.

On two busy cores, where only CPU time and memory mean something (one run of 2 s a cell): with 16 in flight, an image
of ResNet-50 takes 37.7 ms of CPU time narrow, 42.8 crowded, 37.3 elastic and 37.2 shared; one of GoogLeNet 13.0, 14.4,
13.6 and 13.0. Memory beside wide: 1.08 to 1.35 elastic, 0.64 and 0.78 shared. So crowded is no substitute for narrow
sessions, and shared weights make a second session free.

    python bench/elastic.py --models resnet50,googlenet --rounds 2 --seconds 3
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

import harness
import numpy as np
import onnxruntime as ort
from harness import Worker
from machine import cores, memory_mib

from cnnserve.batching.percentile import percentile

VARIANTS = ("wide", "narrow", "crowded", "elastic", "shared")
FIXED = ("wide", "narrow")
IN_FLIGHT = (1, 2, 4, 16)
# A narrow instance takes no larger batch, so that one does not take the whole queue. In the server, the clients of the
# last run come back during the next one, so the wide instance finds half of those in flight.
NARROW_BATCH = 4
WIDE_BATCH = IN_FLIGHT[-1] // 2
WARM_UP_S = 0.2
# Of the best variant under load, and of the wide session alone: what an elastic layout must reach to be worth its code.
FULL, LONE, MEMORY = 0.97, 1.05, 1.15


class Sessions:
    """The sessions of a variant: `wide` runs a lone request, `narrow` everything else."""

    def __init__(self, variant: str, onnx: Path, threads: int) -> None:
        self.instances = 1 if variant == "wide" else threads
        if variant == "wide":
            self.wide = self.narrow = _open(onnx, threads, spin=True)
        elif variant == "narrow":
            self.wide = self.narrow = _open(onnx, 1)
        elif variant == "crowded":
            self.wide = self.narrow = _open(onnx, threads)
        elif variant == "elastic":
            self.wide, self.narrow = _open(onnx, threads, spin=True), _open(onnx, 1)
        else:
            with tempfile.TemporaryDirectory(prefix="cnnserve-bench-") as folder:
                # In a process of its own, whose memory does not count.
                command = [sys.executable, __file__, "--optimise", str(onnx), folder]
                subprocess.run(command, check=True)
                file = Path(folder) / "model.onnx"
                self.wide = _open(file, threads, spin=True, optimised=True)
                self.narrow = _open(file, 1, optimised=True)


def _open(onnx: Path, threads: int, *, spin: bool = False, optimised: bool = False) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_prepacking", "1")
    return ort.InferenceSession(str(onnx), options, providers=["CPUExecutionProvider"])


def optimise(onnx: Path, folder: Path) -> int:
    """Writes an optimised network and its weights to two files in `folder`."""
    options = ort.SessionOptions()
    # It warns that the file is for such processors only.
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "model.onnx")
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.bin")
    options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    ort.InferenceSession(str(onnx), options, providers=["CPUExecutionProvider"])
    return 0


class Queue:
    """Clients that send the next request as soon as the last one is answered, and the instances that serve them."""

    def __init__(self, sessions: Sessions, in_flight: int) -> None:
        self._sessions = sessions
        self._changed = threading.Condition()
        self._waiting = deque([time.perf_counter()] * in_flight)
        self._running = 0
        self._lone = False
        self._end = 0.0
        self.latencies: list[float] = []

    def serve(self, seconds: float) -> float:
        """Serves for `seconds` and returns the time that it took."""
        began = time.perf_counter()
        self._end = began + seconds
        threads = [threading.Thread(target=self._instance) for _ in range(self._sessions.instances)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - began

    def _instance(self) -> None:
        while (taken := self._take()) is not None:
            session, sent = taken
            spec = session.get_inputs()[0]
            session.run(None, {spec.name: np.zeros((len(sent), *spec.shape[1:]), np.uint8)})
            now = time.perf_counter()
            with self._changed:
                self._running -= 1
                self._lone = False
                self.latencies += [now - at for at in sent]
                self._waiting += [now] * len(sent)
                self._changed.notify_all()

    def _take(self) -> tuple[ort.InferenceSession, list[float]] | None:
        """Waits for rows. Returns the session to run and when the rows were sent; None at the end."""
        sessions = self._sessions
        with self._changed:
            # While a lone request has all cores, nothing else starts.
            self._changed.wait_for(lambda: time.perf_counter() >= self._end or (self._waiting and not self._lone))
            if time.perf_counter() >= self._end:
                self._changed.notify_all()
                return None
            self._lone = len(self._waiting) == 1 and not self._running and sessions.instances > 1
            if sessions.instances == 1:
                count = min(len(self._waiting), WIDE_BATCH)
            else:
                free = sessions.instances - self._running
                count = min(-(-len(self._waiting) // free), NARROW_BATCH)
            self._running += 1
            session = sessions.wide if self._lone or sessions.instances == 1 else sessions.narrow
            return session, [self._waiting.popleft() for _ in range(count)]


def main() -> int:
    """Measures the variants and returns the exit status: 0 if every elastic layout reached its targets."""
    if sys.argv[1:2] == ["--optimise"]:
        return optimise(*map(Path, sys.argv[2:]))
    if sys.argv[1:2] == ["--worker"]:
        return work(sys.argv[2], Path(sys.argv[3]))
    parser = argparse.ArgumentParser(description="Compare fixed layouts with elastic ones.")
    harness.add_models(parser, ["resnet50", "googlenet"])
    harness.add_rounds(parser, 2, 3.0)
    harness.add_repository(parser)
    text = f"variants besides wide, separated by commas (default: {','.join(VARIANTS[1:])})"
    parser.add_argument("--variants", type=lambda value: ["wide", *value.split(",")], default=VARIANTS, help=text)
    options = parser.parse_args()
    results: dict[str, Any] = {}
    passed = True
    with harness.exported(options.models, options.repository) as root:
        for model in options.models:
            onnx = root / model / "1" / harness.manifest_of(root, model).onnx.file
            results[model] = _measure(onnx, options)
            passed = _print(model, results[model]) and passed
    harness.write_result("elastic", {"seconds": options.seconds, "models": results})
    return 0 if passed else 1


def work(variant: str, onnx: Path) -> int:
    """Measures one variant: each line of standard input is a cell, each line of output its result, in JSON."""
    sessions = Sessions(variant, onnx, cores())
    print("{}", flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        Queue(sessions, command["in_flight"]).serve(min(WARM_UP_S, command["seconds"]))
        queue = Queue(sessions, command["in_flight"])
        cpu_s = time.process_time()
        elapsed = queue.serve(command["seconds"])
        cpu_s = time.process_time() - cpu_s
        latencies = sorted(queue.latencies)
        cell = {
            "rate": len(latencies) / elapsed,
            "p50_ms": percentile(latencies, 50) * 1e3,
            "p99_ms": percentile(latencies, 99) * 1e3,
            "cpu_ms": cpu_s / len(latencies) * 1e3,
            "memory_mib": memory_mib(os.getpid()),
        }
        print(json.dumps(cell), flush=True)
    return 0


def _measure(onnx: Path, options: argparse.Namespace) -> dict[str, dict[str, dict[str, float]]]:
    cells: dict[str, dict[str, list[dict[str, float]]]] = {
        variant: {str(count): [] for count in IN_FLIGHT} for variant in options.variants
    }
    for number in range(options.rounds):
        for variant in harness.in_turn(options.variants, number):
            # One process at a time, so that what they share is not counted once.
            with Worker("elastic.py", "--worker", variant, onnx) as worker:
                for count in IN_FLIGHT:
                    cells[variant][str(count)].append(worker.ask(in_flight=count, seconds=options.seconds))
    return {
        variant: {count: harness.medians(runs) for count, runs in counts.items()} for variant, counts in cells.items()
    }


def _print(model: str, cells: dict[str, dict[str, dict[str, float]]]) -> bool:
    lone, full = str(IN_FLIGHT[0]), str(IN_FLIGHT[-1])
    rows = [
        [
            variant,
            *(f"{cell['rate']:.1f}" for cell in counts.values()),
            *(
                f"{counts[count][key]:.2f}"
                for count, key in (
                    (lone, "p50_ms"),
                    (full, "p99_ms"),
                    (full, "cpu_ms"),
                    (full, "memory_mib"),
                )
            ),
        ]
        for variant, counts in cells.items()
    ]
    head = [
        *(f"images/s at {count}" for count in IN_FLIGHT),
        f"p50 ms at {lone}",
        f"p99 ms at {full}",
        f"CPU ms at {full}",
        "MiB",
    ]
    print(f"\n{model}, {cores()} cores")
    print(harness.table(["variant", *head], rows))
    fixed = max(cell[full]["rate"] for variant, cell in cells.items() if variant in FIXED)
    good = []
    for variant in (name for name in cells if name not in FIXED):
        rate = cells[variant][full]["rate"] / fixed
        alone = cells[variant][lone]["p50_ms"] / cells["wide"][lone]["p50_ms"]
        memory = cells[variant][full]["memory_mib"] / cells["wide"][full]["memory_mib"]
        good.append(rate >= FULL and alone <= LONE and memory <= MEMORY)
        print(
            f"  {harness.verdict(passed=good[-1]):<6}  {variant}: images/s at {full} >= {FULL} of the better fixed: "
            f"{rate:.3f}; p50 at {lone} <= {LONE} of wide: {alone:.3f}; memory <= {MEMORY} of wide: {memory:.3f}"
        )
    sys.stdout.flush()
    return all(good)


if __name__ == "__main__":
    sys.exit(main())
