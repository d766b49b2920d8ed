"""Measures what the check of every output row costs: requests with and without the check, in turns.

Both ways use the same session and the same threads; only the batcher's check differs. The time of a request is that
from its arrival at the batcher to its rows. Target: with the check, the median rises by at most 2 %, or 5 us.
"""

import argparse
import asyncio
import functools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import numpy as np

from cnnserve.batching.batcher import DynamicBatcher
from cnnserve.batching.guard import Guard
from cnnserve.batching.row_check import RowCheck, is_finite
from cnnserve.datatypes import Rows
from cnnserve.model import loader
from cnnserve.model.loader import OpenVersion
from cnnserve.process.cpu import cpu_budget
from cnnserve.repository import folders
from cnnserve.repository.version_files import VersionFiles

SHARE, US = 0.02, 5.0
# Requests of one turn of one way.
TURN = 20


def main() -> int:
    """Prints the medians and the time of the check alone. Returns 1 if the target was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    harness.add_models(parser, ["lenet5", "resnet18"])
    harness.add_rounds(parser, 40)
    harness.add_repository(parser)
    arguments = parser.parse_args()
    with harness.exported(arguments.models, arguments.repository) as root:
        cells = [
            asyncio.run(_cell(root, name, rows, arguments.rounds)) for name in arguments.models for rows in (1, 32)
        ]
    reached = [cell["on_us"] - cell["off_us"] <= max(US, SHARE * cell["off_us"]) for cell in cells]
    print(
        harness.table(
            ["model", "rows", "off us", "on us", "check us"],
            [
                [cell["model"], cell["rows"], *(f"{cell[key]:.1f}" for key in ("off_us", "on_us", "check_us"))]
                for cell in cells
            ],
        )
    )
    for cell, passed in zip(cells, reached, strict=True):
        print(f"  {harness.verdict(passed=passed):<6}  {cell['model']}, {cell['rows']} rows")
    inputs = {f"{dtype} x {count}": _input_us(dtype, count) for dtype in ("float32", "float16") for count in (1, 32)}
    print("check of an input tensor of 3 x 224 x 224, us: " + ", ".join(f"{k} {v:.0f}" for k, v in inputs.items()))
    harness.write_result("row_checks", {"cells": cells, "input_us": inputs})
    return 0 if all(reached) else 1


async def _cell(root: Path, name: str, count: int, rounds: int) -> dict[str, Any]:
    with VersionFiles(folders.find(root, name), 1) as files:
        opened = loader.open_version(files, cpu_budget(), engine_cache=Path(os.devnull), load_timeout_s=600)
    settings = opened.info.settings
    check = RowCheck([output.name for output in settings.outputs], settings.label_output, opened.info.rows.kind)
    ways = {"off": _batcher(opened, None), "on": _batcher(opened, check)}
    rows = np.random.default_rng(0).integers(0, 256, (count, *settings.row_shape), np.uint8)
    times: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds):
        for way in list(ways)[:: 1 if number % 2 else -1]:
            times[way] += await _turn(ways[way], rows)
    outputs = (await ways["off"].submit(rows, ways["off"].reserve(count))).outputs
    check_us = _shortest_us(functools.partial(check.bad_rows, outputs))
    for batcher in ways.values():
        await batcher.close()
    medians = {f"{way}_us": harness.median(values) for way, values in times.items()}
    return {"model": name, "rows": count, **medians, "check_us": check_us}


def _batcher(opened: OpenVersion, check: RowCheck | None) -> DynamicBatcher:
    return DynamicBatcher(
        opened.info.settings.policy, opened.instances, inline=opened.inline, guard=Guard(check, opened.run_limit_s)
    )


async def _turn(batcher: DynamicBatcher, rows: Rows) -> list[float]:
    """Returns the times of some requests, one after the other, in us."""
    times = []
    for _ in range(TURN):
        started = time.perf_counter()
        await batcher.submit(rows, batcher.reserve(len(rows)))
        times.append((time.perf_counter() - started) * 1e6)
    return times


def _shortest_us(work: Callable[[], object]) -> float:
    times = []
    for _ in range(200):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times) * 1e6


def _input_us(dtype: str, count: int) -> float:
    values = np.random.default_rng(0).random(count * 3 * 224 * 224).astype(dtype)
    return _shortest_us(functools.partial(is_finite, values))


if __name__ == "__main__":
    sys.exit(main())
