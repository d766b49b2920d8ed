"""What counting for the metrics costs: LeNet-5 with all metrics, without those of drift, and without any, in turns.

The server without any is this server with its counting replaced by nothing. Target: with all metrics, the rate of unary
requests is at most 3 % lower. On a busy machine, the CPU time of the server a request is the steadier figure.

    python bench/metrics.py --rounds 10 --seconds 3
"""

import argparse
import contextlib
import sys
from collections import defaultdict
from typing import Any

import harness
from harness import median

IN_FLIGHT = (1, 16)
COST = 0.03
_KINDS = {
    "all": ((), ()),
    "no drift": (("--no-drift-metrics",), ()),
    "none": ((), (str(harness.BENCH / "uncounted_server.py"),)),
}


def main() -> int:
    """Runs the benchmark and returns the exit status: 0 if the target is reached."""
    parser = argparse.ArgumentParser(description="Measure the cost of counting for the metrics.")
    harness.add_rounds(parser, 10, 3.0)
    harness.add_repository(parser)
    options = parser.parse_args()
    cells: defaultdict[str, list[dict[str, float]]] = defaultdict(list)
    with contextlib.ExitStack() as stack:
        root = stack.enter_context(harness.exported(["lenet5"], options.repository))
        repository = stack.enter_context(harness.only(["lenet5"], root))
        servers = {
            name: stack.enter_context(harness.serving(repository, *flags, python=python))
            for name, (flags, python) in _KINDS.items()
        }
        request = harness.infer_request(harness.manifest_of(repository, "lenet5"), "lenet5")
        for server in servers.values():
            harness.check_answer(server, request)
        body = request.SerializeToString()
        for number in range(options.rounds):
            for count in IN_FLIGHT:
                for name in harness.in_turn(servers, number):
                    cells[f"{name}, {count}"].append(
                        harness.load(
                            servers[name].address,
                            [body],
                            in_flight=count,
                            seconds=options.seconds,
                            server_pid=servers[name].pid,
                            warm_up_s=min(0.5, options.seconds),
                        )
                    )
    reached = _print(cells)
    summary = {name: harness.medians(runs) for name, runs in cells.items()}
    harness.write_result("metrics", {"settings": vars(options) | {"repository": None}, "cells": summary})
    return 0 if reached else 1


def _print(cells: dict[str, list[dict[str, float]]]) -> bool:
    """Prints the table and the targets, and returns whether they are reached."""
    rows: list[list[Any]] = []
    rates = {}
    for name, runs in cells.items():
        base = cells[f"none, {name.partition(', ')[2]}"]
        # Runs of one round are compared with each other, because the machine changes between rounds.
        rate, cpu = (
            median([run[key] / other[key] for run, other in zip(runs, base, strict=True)])
            for key in ("rate", "server_cpu_us")
        )
        rates[name] = rate
        middle = [median([run[key] for run in runs]) for key in ("rate", "server_cpu_us")]
        rows.append([name, f"{middle[0]:,.0f}", f"{middle[1]:,.1f}", f"{rate:.3f}", f"{cpu:.3f}"])
    print(harness.table(["metrics, in flight", "requests/s", "CPU us", "rate x none", "CPU x none"], rows))
    passed = {count: rates[f"all, {count}"] >= 1 - COST for count in IN_FLIGHT}
    for count, good in passed.items():
        print(f"  {harness.verdict(passed=good):<6}  all metrics, {count} in flight: rate >= {1 - COST} x without")
    return all(passed.values())


if __name__ == "__main__":
    sys.exit(main())
