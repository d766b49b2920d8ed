"""What the benchmarks share: flags, servers and workers that end in any case, requests, results and tables."""

import argparse
import array
import contextlib
import datetime as dt
import importlib.metadata
import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc
import machine
import numpy as np
from numpy.typing import NDArray

from cnnserve.repository.manifest import Manifest
from cnnserve.repository.manifest import read as read_manifest
from cnnserve.wire import open_inference_pb2 as pb

_T = TypeVar("_T")

BENCH = Path(__file__).parent
LOAD = [sys.executable, "-m", "cnnserve.tools.load"]
# Tests write their results elsewhere.
RESULTS = Path(os.environ.get("CNNSERVE_BENCH_RESULTS", BENCH / "results"))
INFER = "inference.GRPCInferenceService/ModelInfer"
# More requests than an open loop below the knee ever has.
OPEN_IN_FLIGHT = 400
START_S = 120.0
STOP_S = 60.0
# If a benchmark receives SIGTERM, it exits like this, so that it stops its servers and removes its temporary folders.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


@dataclass
class Server:
    """A `cnnserve serve` process."""

    process: subprocess.Popen[str]
    started: float
    lines: list[tuple[float, str]]
    address: str = ""

    @property
    def pid(self) -> int:
        """The ID of the process."""
        return self.process.pid

    def wait_for(self, pattern: str) -> tuple[float, re.Match[str]]:
        """Waits until the log contains `pattern`. Returns the time of that line (seconds since start) and the match."""
        end = time.perf_counter() + START_S
        seen = 0
        while time.perf_counter() < end:
            alive = self.process.poll() is None
            for at, line in self.lines[seen:]:
                seen += 1
                if match := re.search(pattern, line):
                    return at - self.started, match
            if not alive:
                break
            time.sleep(0.005)
        raise SystemExit(f"the server did not log {pattern!r}; its log:\n" + "\n".join(text for _, text in self.lines))

    def call(self, method: str, request: Any, answer: type[Any], timeout_s: float = 60) -> Any:
        """Makes one call over gRPC and returns the response."""
        with grpc.insecure_channel(self.address) as channel:
            rpc = channel.unary_unary(
                f"/{method}",
                request_serializer=type(request).SerializeToString,
                response_deserializer=answer.FromString,
            )
            return rpc(request, timeout=timeout_s)

    def mean_batch(self, model: str) -> tuple[int, int] | None:
        """Returns the number of images and of runs so far; None if the server has no statistics."""
        request = pb.ModelStatisticsRequest(name=model)
        try:
            answer = self.call("inference.GRPCInferenceService/ModelStatistics", request, pb.ModelStatisticsResponse)
        except grpc.RpcError:
            return None
        stats = answer.model_stats[0]
        return stats.inference_count, stats.execution_count


@contextlib.contextmanager
def serving(
    repository: Path, *flags: str, python: Sequence[str] = (), checkout: Path | None = None
) -> Iterator[Server]:
    """Yields a READY server on free ports of 127.0.0.1 and stops it with SIGTERM in any case.

    `checkout`: runs the code of another checkout of this repository.
    """
    ports = ["--host", "127.0.0.1", "--grpc-port", "0", "--http-port", "0"]
    command = [sys.executable, *python, "-m", "cnnserve", "serve", "--model-repository", str(repository), *ports]
    started = time.perf_counter()
    process = subprocess.Popen([*command, *flags], stderr=subprocess.PIPE, text=True, env=_environment(checkout))
    server = Server(process, started, [])
    reader = threading.Thread(target=_collect, args=(server,), daemon=True)
    reader.start()
    try:
        server.address = "127.0.0.1:" + server.wait_for(r"gRPC port (\d+)")[1][1]
        server.wait_for(r"cnnserve\.app: ready\b")
        yield server
    finally:
        end(process)
        reader.join(STOP_S)


def _environment(checkout: Path | None) -> dict[str, str]:
    """Returns the environment of a server: without settings of its own, and with another checkout's code."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("CNNSERVE_")}
    if checkout is not None:
        parts = [str(checkout.resolve() / folder) for folder in ("server", "export", "client")]
        environment["PYTHONPATH"] = os.pathsep.join(parts)
    return environment


def _collect(server: Server) -> None:
    for line in server.process.stderr or ():
        server.lines.append((time.perf_counter(), line.rstrip()))


def end(process: subprocess.Popen[str]) -> None:
    """Ends a process with SIGTERM; if it still runs after `STOP_S`, with SIGKILL."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def empty_server() -> Iterator[Server]:
    """Yields the gRPC server that runs no model, and ends it in any case."""
    command = [sys.executable, str(BENCH / "empty_server.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            port = process.stdout.readline().strip() if process.stdout else ""
            yield Server(process, time.perf_counter(), [], f"127.0.0.1:{port}")
        finally:
            end(process)


class Worker:
    """A process that runs a script of this folder. Commands and results are lines of JSON."""

    def __init__(self, script: str, *arguments: str | Path) -> None:
        command = [sys.executable, str(BENCH / script), *map(str, arguments)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.first = self._read()

    def ask(self, **command: object) -> dict[str, float]:
        """Sends a command and returns its result."""
        stdin = self._process.stdin
        assert stdin is not None
        stdin.write(json.dumps(command) + "\n")
        stdin.flush()
        return dict(self._read())

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:
            end(self._process)

    @property
    def pid(self) -> int:
        """The ID of the process."""
        return self._process.pid

    def _read(self) -> Any:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise SystemExit(f"{self._process.args!r} ended without a result")
        return json.loads(line)


def load(
    address: str,
    bodies: Sequence[bytes],
    *,
    in_flight: int,
    seconds: float,
    method: str = INFER,
    server_pid: int = 0,
    warm_up_s: float = 1.0,
    connections: int = 1,
) -> dict[str, float]:
    """Returns one cell of load, which a process of its own generates. If a request fails, the benchmark ends."""
    words = [address, "--method", method, "--in-flight", str(in_flight), "--seconds", str(seconds)]
    words += ["--warm-up-s", str(warm_up_s), "--server-pid", str(server_pid), "--connections", str(connections)]
    result = _generate(words, bodies, seconds + warm_up_s)
    if result["failed"]:
        raise SystemExit(f"{result['failed']} requests failed: {result['statuses']}")
    return result


def open_load(
    address: str, bodies: Sequence[bytes], *, rate: float, seed: int, seconds: float, warm_up_s: float
) -> list[float]:
    """Returns the latency of each request of an open loop (Poisson) in s: `inf` if it failed."""
    words = [address, "--method", INFER, "--rate", str(rate), "--seed", str(seed), "--seconds", str(seconds)]
    words += ["--warm-up-s", str(warm_up_s), "--in-flight", str(OPEN_IN_FLIGHT), "--connections", "4"]
    with tempfile.TemporaryDirectory(prefix="cnnserve-load-") as folder:
        samples = Path(folder) / "samples"
        result = _generate([*words, "--samples", str(samples)], bodies, seconds + warm_up_s)
        latencies = array.array("d", samples.read_bytes()).tolist()
    return latencies + [math.inf] * int(result["failed"])


def _generate(words: Sequence[str], bodies: Sequence[bytes], seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="cnnserve-load-") as folder:
        command = [*LOAD, *words]
        for index, body in enumerate(bodies):
            file = Path(folder) / f"{index}.bin"
            file.write_bytes(body)
            command += ["--body", str(file)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=seconds + 120, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def infer_request(manifest: Manifest, model: str, batch: int = 1) -> pb.ModelInferRequest:
    """Returns a request with random pixels, as raw contents, for a model with uint8 input."""
    shape = (batch, *manifest.input.shape)
    data = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    request = pb.ModelInferRequest(model_name=model, raw_input_contents=[data.tobytes()])
    request.inputs.add(name=manifest.input.name, datatype="UINT8", shape=shape)
    return request


def check_answer(server: Server, request: pb.ModelInferRequest) -> NDArray[np.float32]:
    """Sends one request and returns its probabilities. If they are none, the benchmark ends: it would mean nothing."""
    answer = server.call(INFER, request, pb.ModelInferResponse)
    rows = np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(answer.outputs[0].shape)
    if rows.shape[0] != request.inputs[0].shape[0] or not np.allclose(rows.sum(axis=1), 1, atol=1e-3):
        raise SystemExit(f"{request.model_name} returned rows of shape {rows.shape} that are not probabilities")
    return rows


def manifest_of(repository: Path, model: str) -> Manifest:
    """Returns the manifest of version 1 of a model."""
    return manifest_in(repository / model / "1")


def manifest_in(folder: Path) -> Manifest:
    """Returns the manifest of a version folder."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise SystemExit(f"{folder} has no manifest")
    return manifest


@contextlib.contextmanager
def exported(models: Sequence[str], repository: Path | None, checkout: Path | None = None) -> Iterator[Path]:
    """Yields a model repository with these architectures, with seeded random weights.

    If `repository` is given, its models are used, and missing models are exported to it. They stay there. `checkout`:
    the code of another checkout exports them.
    """
    with tempfile.TemporaryDirectory(prefix="cnnserve-bench-") as folder:
        root = repository or Path(folder)
        for model in models:
            if not (root / model / "1").is_dir():
                print(f"exporting {model} ...", flush=True)
                command = [sys.executable, "-m", "cnnserve", "export", model, "--repository", str(root)]
                environment = _environment(checkout)
                subprocess.run(command, check=True, capture_output=True, timeout=600, env=environment)
        yield root


@contextlib.contextmanager
def only(models: Sequence[str], repository: Path) -> Iterator[Path]:
    """Yields a model repository that consists of links to some models of another repository."""
    with tempfile.TemporaryDirectory(prefix="cnnserve-bench-") as folder:
        for model in models:
            (Path(folder) / model).symlink_to((repository / model).resolve(), target_is_directory=True)
        yield Path(folder)


def add_models(parser: argparse.ArgumentParser, models: Sequence[str]) -> None:
    """Adds the flag for the models to measure."""
    text = f"models to measure, separated by commas (default: {','.join(models)})"
    parser.add_argument("--models", type=lambda value: value.split(","), default=list(models), help=text)


def add_rounds(parser: argparse.ArgumentParser, rounds: int, seconds: float | None = None) -> None:
    """Adds the flags for the number of rounds and, if `seconds` is given, for the time of a cell."""
    parser.add_argument("--rounds", type=int, default=rounds, help="number of rounds (default: %(default)s)")
    if seconds is not None:
        text = "seconds to measure each cell (default: %(default)s)"
        parser.add_argument("--seconds", type=float, default=seconds, help=text)


def add_repository(parser: argparse.ArgumentParser) -> None:
    """Adds the flag for the folder of exported models."""
    text = "model repository to use; missing models are exported to it and stay there (default: a temporary folder)"
    parser.add_argument("--repository", type=Path, help=text)


def median(values: Sequence[float]) -> float:
    """Returns the median."""
    return statistics.median(values)


def medians(runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns the median of each number over several runs of a cell."""
    numbers = [key for key, value in runs[0].items() if isinstance(value, int | float)]
    return {key: median([run[key] for run in runs]) for key in numbers}


def in_turn(items: Iterable[_T], number: int) -> list[_T]:
    """Returns what is measured side by side in the order of a round: every second round begins at the other end."""
    ordered = list(items)
    return ordered if number % 2 == 0 else ordered[::-1]


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Returns the rows as text in columns. All columns but the first are aligned to the right."""
    cells = [list(map(str, row)) for row in [head, *rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) if column == 0 else cell.rjust(width) for column, (cell, width) in parts)
        for parts in (list(enumerate(zip(row, widths, strict=True))) for row in cells)
    )


def verdict(*, passed: bool) -> str:
    """Returns the word for a target that was reached, or was not."""
    return "ok" if passed else "MISSED"


def result(name: str, data: dict[str, Any]) -> dict[str, Any]:
    """Returns the results of a run with its date, commit, machine and versions."""
    commit = _git("rev-parse", "--short", "HEAD")
    return {
        "benchmark": name,
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "commit": commit + ("+changes" if _git("status", "--porcelain", "server") else ""),
        "machine": machine.describe(),
        "versions": {package: _version(package) for package in ("onnxruntime", "grpcio", "numpy", "protobuf")},
    } | data


def write_result(name: str, data: dict[str, Any]) -> Path:
    """Writes a run to `RESULTS`, with commit, machine and versions, and returns the file."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}-{dt.datetime.now(dt.UTC):%Y%m%d-%H%M%S}.json"
    path.write_text(json.dumps(result(name, data), indent=1) + "\n")
    print(f"\nwritten to {os.path.relpath(path)}")
    return path


def _version(package: str) -> str:
    """Returns the version of an installed package, "" without one; ONNX Runtime has several names."""
    for name in (package, f"{package}-gpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return ""


def _git(*words: str) -> str:
    """Returns the output of git; "" where there is no repository, or no git."""
    with contextlib.suppress(OSError):
        return subprocess.run(["git", *words], cwd=BENCH, capture_output=True, text=True, check=False).stdout.strip()
    return ""
