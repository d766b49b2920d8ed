"""`cnnserve tune`: finds the best layout of a model on this machine."""

import argparse
import asyncio
import contextlib
import datetime as dt
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import cnnserve
from cnnserve.errors import ServingError
from cnnserve.model import layout_search as search
from cnnserve.model.layout_search import Axes, Goal, Measurement, OutOfBudget, Search
from cnnserve.model.layouts import IN_FLIGHT, Layouts, opened
from cnnserve.model_config import pbtxt
from cnnserve.model_config.layout import Layout
from cnnserve.process.cpu import cpu_budget, processor
from cnnserve.repository import folders, layout
from cnnserve.repository.folders import ModelFolder
from cnnserve.repository.signature import SIGNATURE_FILE
from cnnserve.tools import outputs
from cnnserve.tools.tuning import plot, writing
from cnnserve.tools.tuning.flags import tune_parser
from cnnserve_client.commands.report import table
from cnnserve_client.errors import CnnserveError

_DELAYS_US = (0, 1000, 4000)
# Of the budget: each measurement, and how many there are at most. Close results are measured again.
_SHARE = 1 / 25
_SHORTEST_S, _LONGEST_S = 0.3, 5.0
_SHORTEST_BUDGET_S = 2.0


class _CannotTune(Exception):
    """There is nothing to tune. The text says why, and what to do."""


def tune(argv: Sequence[str]) -> int:
    """Runs `cnnserve tune` and returns its exit status: 0, 1 if the model cannot be tuned, 130 after Ctrl-C."""
    options = tune_parser().parse_args(argv)
    try:
        return _tune(options)
    except (_CannotTune, ServingError, CnnserveError, OSError) as error:
        print(f"cnnserve tune: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _tune(options: argparse.Namespace) -> int:
    outputs.check(options.plot, "--plot")
    if options.budget < _SHORTEST_BUDGET_S:
        raise _CannotTune(f"--budget is {options.budget:g} s, expected at least {_SHORTEST_BUDGET_S:g} s")
    folder = _folder(options.path)
    version = max(folder.versions)
    threads = options.cpu_threads or cpu_budget()
    with opened(folder, version, threads) as layouts:
        found, best = _search(layouts, threads, options)
    goal = options.target_p99 * 1e3 if options.target_p99 else None
    _print(found, layouts.current, best, goal)
    if options.plot:
        title = f"{folder.name}, {processor()}, {threads} CPU threads"
        options.plot.write_text(plot.svg(title, found, search.frontier(found), best))
    _write(folder, layouts.current, best, found, threads, dry_run=options.dry_run)
    return 0


def _folder(path: Path) -> ModelFolder:
    path = folders.named(path)
    folder = folders.model_folder(path)
    if folder.unreadable:
        raise _CannotTune(f"{path} cannot be read: {folder.unreadable}")
    if folder.versions:
        return folder
    if not path.is_dir():
        raise _CannotTune(f"{path} is not a folder; give the folder of a model, such as model_repo/lenet5")
    models = [model.name for model in folders.scan(path) if model.versions]
    if models:
        raise _CannotTune(f"{path} is a model repository; give the folder of one model, such as {path / models[0]}")
    problem = layout.problem(path) or f"{path} has no version"
    raise _CannotTune(f"{problem}; give the folder of a model with a version")


def _search(layouts: Layouts, threads: int, options: argparse.Namespace) -> tuple[dict[Layout, Measurement], Layout]:
    end = time.monotonic() + options.budget
    seconds = min(_LONGEST_S, max(_SHORTEST_S, options.budget * _SHARE))
    longest = 0.0
    number = 0

    def measure(candidate: Layout) -> Measurement:
        nonlocal longest, number
        began = time.monotonic()
        if number and began + longest > end:
            raise OutOfBudget
        prepared = layouts.prepare(candidate)
        measured = asyncio.run(prepared.measure(layouts.row, seconds))
        longest = max(longest, time.monotonic() - began)
        number += 1
        print(f"\r{number} measurements, {max(0, end - time.monotonic()):.0f} s left ", end="", file=sys.stderr)
        return measured

    start = layouts.current
    first = measure(start)
    goal = Goal(options.target_p99 * 1e3 if options.target_p99 else search.WORSE * first.p99_ms)
    axes = _axes(threads, layouts.settings.max_batch_size)
    finder = Search(axes, measure, goal, most=max(len(axes) // 4, 8))
    best = start
    # The search measures the present layout, too.
    with contextlib.suppress(OutOfBudget):
        best = finder.run(start)
    print(file=sys.stderr)
    if len(finder.found) < 2:
        raise _CannotTune(
            f"--budget is {options.budget:g} s, which is enough for one layout only ({longest:.1f} s); give more"
        )
    return dict(finder.found), best


def _axes(threads: int, max_batch_size: int) -> Axes:
    most = min(max_batch_size, IN_FLIGHT)
    batches = sorted({*(1 << power for power in range(most.bit_length()) if 1 << power <= most), most, max_batch_size})
    return Axes(search.shapes(threads), batches, _DELAYS_US)


def _print(found: dict[Layout, Measurement], current: Layout, best: Layout, target_ms: float | None) -> None:
    line = {*search.frontier(found)}
    head = ("instances", "threads", "batch", "delay ms", "images/s", "p50 ms", "p99 ms", "CPU ms an image", "")
    rows: list[tuple[str, ...]] = []
    for each, measured in sorted(found.items(), key=lambda item: -item[1].rate):
        notes = [
            word
            for word, holds in (("best", each == best), ("present", each == current), ("frontier", each in line))
            if holds
        ]
        numbers = (measured.rate, measured.p50_ms, measured.p99_ms, measured.cpu_ms)
        rows.append(
            (
                *map(str, (each.instances, each.threads, each.batch)),
                f"{each.delay_us / 1000:g}",
                *(f"{number:,.2f}" for number in numbers),
                ", ".join(notes),
            )
        )
    print(table(head, rows, right=range(len(head) - 1)))
    if target_ms is not None and found[best].p99_ms > target_ms:
        print(f"no layout reached a p99 of {target_ms:g} ms; the lowest was {found[best].p99_ms:.1f} ms")


def _write(
    folder: ModelFolder,
    current: Layout,
    best: Layout,
    found: dict[Layout, Measurement],
    threads: int,
    *,
    dry_run: bool,
) -> None:
    path = folder.path / pbtxt.CONFIG_FILE
    if best == current:
        print(f"{path} stays as it is: the present layout is the best")
        return
    old = path.read_bytes().decode("utf-8-sig") if path.exists() else ""
    new = writing.with_layout(old, best, _comment(current, best, found, threads))
    # The text was cut by this module's own rules, so the parser has the last word.
    if pbtxt.parse(new, folder.name) != best.applied(pbtxt.parse(old, folder.name)):
        raise _CannotTune(f"{path} could not be changed safely; write the layout {best} yourself")
    reason = _why_not(folder, path, dry_run=dry_run)
    if not reason:
        try:
            writing.replace_file(path, new.encode())
        except OSError as error:
            reason = f"it cannot be written ({error.strerror})"
        else:
            print(f"written to {path}")
            return
    print(f"{path} stays as it is, because {reason}; the lines are\n")
    print(writing.with_layout("", best, _comment(current, best, found, threads)), end="")


def _why_not(folder: ModelFolder, path: Path, *, dry_run: bool) -> str:
    if dry_run:
        return "--dry-run was given"
    if (folder.path / SIGNATURE_FILE).exists():
        return "the folder is signed"
    if folder.mounted:
        return "the folder is that of a version, whose files do not change"
    if not os.access(path if path.exists() else path.parent, os.W_OK) or not os.access(path.parent, os.W_OK):
        return "it cannot be written"
    return ""


def _comment(current: Layout, best: Layout, found: dict[Layout, Measurement], threads: int) -> list[str]:
    def said(each: Layout) -> str:
        measured = found[each]
        return f"{each}: {measured.rate:,.1f} images/s, p99 {measured.p99_ms:,.1f} ms"

    today = dt.datetime.now(dt.UTC).date().isoformat()
    return [
        f"{today}, {platform.node()}, {processor()}, {threads} CPU threads, cnnserve {cnnserve.__version__}",
        f"{IN_FLIGHT} requests of one image in flight; {said(best)}",
        f"before, {said(current)}",
    ]
