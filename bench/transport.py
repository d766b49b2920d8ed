"""What a call costs: LeNet-5 over each gRPC transport beside a gRPC server that runs no model, in turns.

CPU time of the server a request is the steadiest figure. Targets compare the transport `core` with the empty servicer
on `grpc.aio`, which reads and writes the same messages.

    python bench/transport.py --rounds 5 --seconds 4
"""

import argparse
import sys
from collections import defaultdict
from typing import Any

import harness

IN_FLIGHT = (1, 16, 64)
# Of the empty servicer's: CPU time a request at most, requests/s at least.
CPU_TARGETS = {16: 0.5, 64: 0.4}
RATE_TARGETS = {16: 2.0, 64: 2.0}


def main() -> int:
    """Runs the benchmark and returns the exit status: 0 if all targets are reached."""
    parser = argparse.ArgumentParser(description="Compare the gRPC transports with a server that runs no model.")
    harness.add_rounds(parser, 5, 4.0)
    harness.add_repository(parser)
    options = parser.parse_args()
    cells: defaultdict[str, list[dict[str, float]]] = defaultdict(list)
    with (
        harness.exported(["lenet5"], options.repository) as root,
        harness.only(["lenet5"], root) as repository,
        harness.serving(repository, "--grpc-transport", "core") as core,
        harness.serving(repository, "--grpc-transport", "aio") as aio,
        harness.empty_server() as empty,
    ):
        request = harness.infer_request(harness.manifest_of(repository, "lenet5"), "lenet5")
        harness.check_answer(core, request)
        body = request.SerializeToString()
        servers = {"core": core, "aio": aio, "empty": empty}
        for number in range(options.rounds):
            for count in IN_FLIGHT:
                for name in harness.in_turn(servers, number):
                    server = servers[name]
                    cells[f"{name} {count}"].append(
                        harness.load(
                            server.address,
                            [body],
                            in_flight=count,
                            seconds=options.seconds,
                            server_pid=server.pid,
                            warm_up_s=min(1.0, options.seconds),
                        )
                    )
    summary = {name: harness.medians(runs) for name, runs in cells.items()}
    misses = _print(summary)
    harness.write_result("transport", {"settings": vars(options) | {"repository": None}, "cells": summary})
    return 1 if misses else 0


def _print(summary: dict[str, Any]) -> int:
    """Prints the table and the targets, and returns how many were missed."""
    rows = []
    for name, cell in summary.items():
        base = summary[f"empty {name.split()[1]}"]
        cpu, rate = cell["server_cpu_us"], cell["rate"]
        times = (f"{cell['p50_ms']:.2f}", f"{cell['p99_ms']:.2f}")
        of_empty = (f"{cpu / base['server_cpu_us']:.2f}", f"{rate / base['rate']:.2f}")
        rows.append([name, f"{rate:,.0f}", *times, f"{cpu:,.0f}", *of_empty])
    print(harness.table(["cell", "requests/s", "p50 ms", "p99 ms", "CPU us", "CPU x empty", "rate x empty"], rows))
    misses = 0
    for targets, key, at_most in ((CPU_TARGETS, "server_cpu_us", True), (RATE_TARGETS, "rate", False)):
        for count, target in targets.items():
            reached = summary[f"core {count}"][key] / summary[f"empty {count}"][key]
            passed = reached <= target if at_most else reached >= target
            misses += not passed
            what = f"core, {count} in flight: {key} {'<=' if at_most else '>='} {target} x empty"
            print(f"  {harness.verdict(passed=passed):<6}  {what}: {reached:.2f}")
    return misses


if __name__ == "__main__":
    sys.exit(main())
