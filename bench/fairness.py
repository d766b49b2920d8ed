"""What each kind of traffic keeps beside another: unary gRPC, gRPC streams and HTTP, 16 callers each, on a LeNet-5.

Each kind is measured alone and in every pair. Fair is half of what it reaches alone; the target is half of that, 0.25.
Beside all three kinds, a client asks for the server's health, and the 99th percentile of its wait is reported.

    python bench/fairness.py --rounds 3 --seconds 4
    python bench/fairness.py --checkout ../before --repository ../before/model_repo
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import grpc
import harness
from grpc_health.v1 import health_pb2
from harness import Server, median

from cnnserve.batching.percentile import percentile

CALLERS = 16
TARGET = 0.25
KINDS = ("unary", "stream", "http")
_STREAM = "inference.GRPCInferenceService/ModelStreamInfer"


def main() -> int:
    """Runs the benchmark and returns the exit status: 0 if all targets are reached."""
    parser = argparse.ArgumentParser(description="Measure what each kind of traffic keeps beside another.")
    harness.add_rounds(parser, 3, 4.0)
    harness.add_repository(parser)
    parser.add_argument("--grpc-transport", default="core", help="core or aio (default: %(default)s)")
    parser.add_argument("--checkout", type=Path, help="serve with the code of another checkout, in its own transport")
    options = parser.parse_args()
    flags = [] if options.checkout else ["--grpc-transport", options.grpc_transport]
    alone: defaultdict[str, list[float]] = defaultdict(list)
    together: defaultdict[str, list[float]] = defaultdict(list)
    waits: list[float] = []
    with (
        harness.exported(["lenet5"], options.repository, options.checkout) as root,
        harness.only(["lenet5"], root) as repository,
        harness.serving(repository, *flags, checkout=options.checkout) as server,
        tempfile.TemporaryDirectory(prefix="cnnserve-fairness-") as folder,
    ):
        request = harness.infer_request(harness.manifest_of(repository, "lenet5"), "lenet5")
        harness.check_answer(server, request)
        commands = _commands(server, request, Path(folder), options.seconds)
        for _ in range(options.rounds):
            for kind in KINDS:
                alone[kind].append(_rates(commands, [kind])[kind])
            for pair in itertools.combinations(KINDS, 2):
                for kind, rate in _rates(commands, pair).items():
                    together[f"{kind} beside {next(other for other in pair if other != kind)}"].append(rate)
            waits += _health_waits(server, commands)
    kept = {name: median(rates) / median(alone[name.split()[0]]) for name, rates in together.items()}
    rows = [[name, f"{median(together[name]):,.0f}", f"{share:.2f}"] for name, share in kept.items()]
    rates = ", ".join(f"{kind} {median(alone[kind]):,.0f}" for kind in KINDS)
    print(f"alone, requests/s: {rates}")
    print(harness.table(["pair", "requests/s", "of alone"], rows))
    health_ms = percentile(sorted(waits), 99) * 1e3 if waits else 0.0
    print(f"health check beside all three: p99 {health_ms:.1f} ms")
    for name, share in kept.items():
        print(f"  {harness.verdict(passed=share >= TARGET):<6}  {name} keeps >= {TARGET}: {share:.2f}")
    settings = {"rounds": options.rounds, "seconds": options.seconds, "flags": flags}
    result = {"settings": settings, "alone": dict(alone), "kept": kept, "health_p99_ms": health_ms}
    harness.write_result("fairness", result)
    return 0 if all(share >= TARGET for share in kept.values()) else 1


def _commands(server: Server, request: Any, folder: Path, seconds: float) -> dict[str, list[str]]:
    """Returns the load generator's command for each kind."""
    (folder / "request").write_bytes(request.SerializeToString())
    (folder / "tensor").write_bytes(request.raw_input_contents[0])
    http = server.wait_for(r"HTTP port (\d+)")[1][1]
    load = harness.LOAD
    common = ["--in-flight", str(CALLERS), "--seconds", str(seconds), "--warm-up-s", str(min(1.0, seconds))]
    grpc_body, raw_body = ["--body", str(folder / "request")], ["--body", str(folder / "tensor")]
    path = ["--http-path", f"/v2/models/{request.model_name}/infer", "--header", "Inference-Header-Content-Length: 0"]
    return {
        "unary": [*load, server.address, "--method", harness.INFER, *grpc_body, *common],
        "stream": [*load, server.address, "--method", _STREAM, "--streaming", *grpc_body, *common],
        "http": [*load, f"127.0.0.1:{http}", *path, *raw_body, *common],
    }


def _rates(commands: dict[str, list[str]], kinds: Any) -> dict[str, float]:
    """Runs the load of these kinds at the same time and returns the requests/s of each."""
    running = {kind: subprocess.Popen(commands[kind], stdout=subprocess.PIPE, text=True) for kind in kinds}
    results = {kind: json.loads(process.communicate(timeout=300)[0]) for kind, process in running.items()}
    if failed := {kind: result["failed"] for kind, result in results.items() if result["failed"]}:
        raise SystemExit(f"requests failed: {failed}")
    return {kind: result["rate"] for kind, result in results.items()}


def _health_waits(server: Server, commands: dict[str, list[str]]) -> list[float]:
    """Returns how long health checks took beside the load of all kinds, in seconds."""
    done = threading.Thread(target=_rates, args=(commands, KINDS))
    done.start()
    waits = []
    with grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            health_pb2.HealthCheckRequest.SerializeToString,
            health_pb2.HealthCheckResponse.FromString,
        )
        while done.is_alive():
            started = time.perf_counter()
            check(health_pb2.HealthCheckRequest(), timeout=60)
            waits.append(time.perf_counter() - started)
            time.sleep(0.02)
    done.join()
    return waits


if __name__ == "__main__":
    sys.exit(main())
