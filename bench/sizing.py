"""Fits the cost model of docs/sizing.md to a server's CPU time, and shows its error where it was not fitted.

A request with `rows` rows, sent with `in_flight` of its kind, costs the server

    request_us + rows * (row_us + run_us / batch),  batch = min(maximum batch, in_flight * rows)

of CPU time: once for the call, for each row, and for each run its share of the run's fixed time. Four cells give the
three numbers; the others are predicted and compared. CPU time, not images/s, because the generator of the load takes
CPUs of the same machine.

    python bench/sizing.py --models lenet5 resnet18 --seconds 5
"""

import argparse
import sys
from typing import Any

import harness
import numpy as np

MODELS = ("lenet5", "resnet18")
Cell = tuple[int, int]
# (rows, in flight)
FITTED: tuple[Cell, ...] = ((1, 1), (1, 16), (8, 1), (8, 16))
PREDICTED: tuple[Cell, ...] = ((1, 4), (2, 8), (4, 4), (4, 16), (16, 2))


def features(cell: Cell, max_batch: int) -> tuple[float, float, float]:
    """Returns what the three numbers of the model are multiplied with."""
    rows, in_flight = cell
    return 1.0, float(rows), rows / min(max_batch, in_flight * rows)


def fit(measured: dict[Cell, float], max_batch: int) -> tuple[float, float, float]:
    """Returns request_us, row_us and run_us, none below 0, with the least relative error."""
    weights = np.array([1 / value for value in measured.values()])
    matrix = np.array([features(cell, max_batch) for cell in measured]) * weights[:, None]
    columns = [0, 1, 2]
    found = np.zeros(3)
    while columns:
        part = np.linalg.lstsq(matrix[:, columns], np.ones(len(measured)), rcond=None)[0]
        if (part >= 0).all():
            found[columns] = part
            break
        columns.remove(columns[int(part.argmin())])
    request, row, run = map(float, found)
    return request, row, run


def predicted(numbers: tuple[float, float, float], cell: Cell, max_batch: int) -> float:
    """Returns the CPU time of a request in µs."""
    return sum(number * feature for number, feature in zip(numbers, features(cell, max_batch), strict=True))


def main() -> int:
    """Measures, fits, prints a table for each model and returns the exit status."""
    parser = argparse.ArgumentParser(description="Fit the cost model of docs/sizing.md to this machine.")
    harness.add_models(parser, MODELS)
    harness.add_rounds(parser, 1, seconds=4.0)
    harness.add_repository(parser)
    options = parser.parse_args()
    results: dict[str, Any] = {}
    with (
        harness.exported(options.models, options.repository) as root,
        harness.only(options.models, root) as repository,
        harness.serving(repository) as server,
    ):
        for model in options.models:
            manifest = harness.manifest_of(repository, model)
            runs: dict[Cell, list[float]] = {cell: [] for cell in (*FITTED, *PREDICTED)}
            for number in range(options.rounds):
                for cell in harness.in_turn(runs, number):
                    body = harness.infer_request(manifest, model, cell[0]).SerializeToString()
                    load = harness.load(
                        server.address,
                        [body],
                        in_flight=cell[1],
                        seconds=options.seconds,
                        server_pid=server.pid,
                        warm_up_s=min(1.0, options.seconds),
                    )
                    if not load["server_cpu_us"]:
                        raise SystemExit(f"no CPU time was counted in {options.seconds:g} s; raise --seconds")
                    runs[cell].append(load["server_cpu_us"])
            results[model] = _summary({cell: harness.median(values) for cell, values in runs.items()}, manifest)
            _print(model, results[model])
    harness.write_result("sizing", {"settings": {"rounds": options.rounds, "seconds": options.seconds}} | results)
    return 0


def _summary(measured: dict[Cell, float], manifest: harness.Manifest) -> dict[str, Any]:
    most = manifest.max_batch_size
    numbers = fit({cell: measured[cell] for cell in FITTED}, most)
    rows = []
    for cell, value in measured.items():
        guess = predicted(numbers, cell, most)
        rows.append(
            {
                "rows": cell[0],
                "in_flight": cell[1],
                "fitted": cell in FITTED,
                "measured_us": round(value, 1),
                "predicted_us": round(guess, 1),
                "error": round(guess / value - 1, 3),
            }
        )
    largest = max(abs(row["error"]) for row in rows if not row["fitted"])
    names = ("request_us", "row_us", "run_us")
    return dict(zip(names, numbers, strict=True)) | {"largest_error": largest, "cells": rows}


def _print(model: str, summary: dict[str, Any]) -> None:
    print(
        f"\n{model}: {summary['request_us']:.0f} µs a request, {summary['row_us']:.0f} µs a row, "
        f"{summary['run_us']:.0f} µs a run; largest error where it was not fitted: {summary['largest_error']:.0%}"
    )
    head = ("rows", "in flight", "fitted", "measured µs", "predicted µs", "error")
    rows = [
        (
            row["rows"],
            row["in_flight"],
            "yes" if row["fitted"] else "no",
            row["measured_us"],
            row["predicted_us"],
            f"{row['error']:+.0%}",
        )
        for row in summary["cells"]
    ]
    print(harness.table(head, rows))


if __name__ == "__main__":
    sys.exit(main())
