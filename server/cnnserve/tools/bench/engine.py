"""Runs load processes and puts their results together."""

import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from cnnserve.batching.percentile import percentile

from .cells import BUSY, Cell, Load
from .messages import Messages
from .target import Target

_WARM_UP_S = 1.0
# An open loop over gRPC may have this many requests in flight, one over HTTP as many connections.
_OPEN_GRPC = 1000
_OPEN_HTTP = 128
# The processes agree on a start that lies this far ahead.
_LEAD_S = 0.05


class LoadFailed(Exception):
    """A load has no result. The text says why: for example the last line of a load process."""


@dataclass(frozen=True)
class Plan:
    """What all cells have in common. `processes`: 0 for as many as are needed."""

    seconds: float
    processes: int
    connections: int
    seed: int
    timeout_s: float


class Engine:
    """Puts loads on a server. The messages lie in a folder that is removed at the end. Raises `LoadFailed`."""

    def __init__(self, target: Target, messages: Messages, plan: Plan, cores: int) -> None:
        self._target = target
        self._messages = messages
        self._plan = plan
        self._cores = cores
        self._processes = plan.processes or 1
        self._folder = tempfile.TemporaryDirectory(prefix="cnnserve-bench-")
        self._bodies: list[str] = []
        for number, body in enumerate(messages.bodies):
            path = Path(self._folder.name) / f"{number}.bin"
            try:
                path.write_bytes(body)
            except OSError as error:
                raise LoadFailed(f"cannot write the messages to {self._folder.name}: {error.strerror}") from error
            self._bodies += ["--body", str(path)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._folder.cleanup()

    def run(self, load: Load) -> Cell:
        """Returns the result of one load. Raises `LoadFailed`.

        If a load process is too busy, the load is run again with twice the processes, unless their number was given.
        """
        while True:
            cell = self._run(load, self._count(load))
            most = self._cores if self._plan.processes == 0 else 0
            if cell.busiest <= BUSY or self._count(load) * 2 > most or self._count(load) < self._processes:
                return cell
            self._processes *= 2

    def _count(self, load: Load) -> int:
        return min(self._processes, load.concurrency) if load.concurrency else self._processes

    def _run(self, load: Load, processes: int) -> Cell:
        before = self._target.batches(self._plan.timeout_s)
        with ExitStack() as stack:
            started = [
                stack.enter_context(_Process(self._command(load, number, processes), self._target))
                for number in range(processes)
            ]
            for process in started:
                process.wait_until_ready()
            begin = time.perf_counter() + _LEAD_S
            for process in started:
                process.begin(begin)
            results = [process.result() for process in started]
        samples = [np.fromfile(self._samples(number)) for number in range(processes)]
        after = self._target.batches(self._plan.timeout_s)
        return _cell(load, self._messages.images, results, np.concatenate(samples), _difference(before, after))

    def _samples(self, number: int) -> Path:
        return Path(self._folder.name) / f"samples-{number}"

    def _command(self, load: Load, number: int, processes: int) -> list[str]:
        plan, is_http = self._plan, bool(self._messages.http_path)
        words = [sys.executable, "-P", "-m", "cnnserve.tools.load", self._target.http if is_http else self._target.grpc]
        words += [*self._messages.flags(), *self._bodies, *self._target.flags(), "--wait"]
        words += ["--seconds", str(plan.seconds), "--warm-up-s", str(min(_WARM_UP_S, plan.seconds))]
        words += ["--patience-s", str(plan.timeout_s), "--samples", str(self._samples(number))]
        words += [word for pid in self._target.pids for word in ("--server-pid", str(pid))]
        words += ["--connections", str(plan.connections)]
        if load.concurrency:
            share = load.concurrency // processes + (number < load.concurrency % processes)
            return [*words, "--in-flight", str(share)]
        # Independent Poisson arrivals add up to Poisson arrivals.
        limit = (_OPEN_HTTP if is_http else _OPEN_GRPC) // processes
        return [
            *words,
            "--in-flight",
            str(limit),
            "--rate",
            str(load.rate / processes),
            "--seed",
            str(plan.seed + number),
        ]


class _Process:
    """One load process, ended in any case."""

    def __init__(self, command: Sequence[str], target: Target) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        self._process = subprocess.Popen(  # noqa: S603 - our own program
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
            env=target.environment(),
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._process.kill()
        with self._process, self._errors:
            pass

    def wait_until_ready(self) -> None:
        self._line()

    def begin(self, at: float) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{at}\n")
        self._process.stdin.flush()

    def result(self) -> dict[str, Any]:
        return dict(json.loads(self._line()))

    def _line(self) -> str:
        assert self._process.stdout is not None
        if line := self._process.stdout.readline():
            return line
        self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        raise LoadFailed(lines[-1] if lines else f"a load process ended with status {self._process.returncode}")


def _cell(
    load: Load, images: int, results: Sequence[dict[str, Any]], latencies: "np.ndarray[Any, np.dtype[np.float64]]",
    batches: dict[int, int],
) -> Cell:  # fmt: skip
    failed: Counter[str] = Counter()
    for result in results:
        failed.update(result["statuses"])
    rate = sum(result["rate"] for result in results)
    ordered = sorted(latencies.tolist()) or [0.0]
    p50, p90, p99, most = (1e3 * percentile(ordered, percent) for percent in (50, 90, 99, 100))
    # Each process has measured the CPU time of the same server.
    server_cores = max(result["server_cores"] for result in results)
    return Cell(
        load=load,
        images=images,
        requests=int(latencies.size),
        requests_per_s=rate,
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        max_ms=most,
        failed=dict(failed),
        batches=batches,
        processes=len(results),
        busiest=max(result["load_cores"] for result in results),
        late_ms=max(result["lag_p99_ms"] for result in results),
        server_cpu_ms=server_cores / rate * 1e3 if rate else 0.0,
        withheld=sum(result["withheld"] for result in results),
    )


def _difference(before: dict[int, int] | None, after: dict[int, int] | None) -> dict[int, int]:
    if before is None or after is None:
        return {}
    counts = {size: count - before.get(size, 0) for size, count in sorted(after.items())}
    return {size: count for size, count in counts.items() if count > 0}
