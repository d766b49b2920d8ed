"""Fits the cost model of docs/sizing.md to a server, and shows its error where it was not fitted.

Six loads of two servers give the numbers of a model, see `sizing_model`. Its images/s, latencies and memory are then
predicted for other loads, and for servers with one core and with two instances.

    python bench/sizing.py --models lenet5,resnet18 --seconds 4
    python bench/sizing.py --page                # and writes the tables into docs/sizing.md
"""

import argparse
import contextlib
import os
import re
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import harness
import machine
import sizing_page
from harness import Server
from sizing_model import Cell, Layout, Measured, Numbers, fit, fit_memory

from cnnserve.batching.percentile import percentile

Load = Callable[..., Measured]
MODELS = ("lenet5", "resnet18")
# Those of the usual server that are fitted, and its others.
FITTED = (Cell(1, 1), Cell(1, 16), Cell(8, 1), Cell(8, 8))
PREDICTED = (Cell(1, 4), Cell(2, 8), Cell(4, 4), Cell(4, 16), Cell(16, 2))
AT_RANDOM_TIMES = (Cell(1, 1000, 0.5), Cell(1, 1000, 0.8))
# Of the other servers. That with the small batch is fitted.
OTHERS = (Cell(1, 16), Cell(4, 16))
SMALL_BATCH = 4
# The time that loads run before they count.
_WARM_UP_S = 1.0
_LONGEST_S = 10.0


def main() -> int:
    """Measures, fits, prints the tables of each model and returns the exit status."""
    parser = argparse.ArgumentParser(description="Fit the cost model of docs/sizing.md to this machine.")
    harness.add_models(parser, MODELS)
    harness.add_rounds(parser, 1, seconds=4.0)
    harness.add_repository(parser)
    parser.add_argument("--page", action="store_true", help="write the tables into docs/sizing.md")
    options = parser.parse_args()
    results: dict[str, Any] = {}
    with harness.exported(options.models, options.repository) as root:
        idle = _idle_mib()
        for model in options.models:
            results[model] = _model(root, model, options)
            print("\n" + sizing_page.text_of(model, results[model]))
    settings = {"rounds": options.rounds, "seconds": options.seconds, "cores": machine.cores()}
    file = harness.write_result("sizing", {"settings": settings, "idle_mib": round(idle, 1), "models": results})
    if options.page:
        sizing_page.write(file)
    return 0


def _model(root: Path, model: str, options: argparse.Namespace) -> dict[str, Any]:
    manifest = harness.manifest_of(root, model)
    most, cores = manifest.max_batch_size, machine.cores()
    servers = (
        usual := Layout(cores, 1, most),
        small := Layout(cores, 1, SMALL_BATCH),
        Layout(cores, 2, most),
        Layout(1, 1, most),
    )
    measured: dict[tuple[Layout, Cell], Measured] = {}
    memory: dict[Layout, float] = {}
    # The usual one last, whose loads at random times depend on the others.
    for layout in dict.fromkeys(servers[::-1]):
        with _serving(root, model, layout) as server:
            load = partial(_load, server, manifest, options.seconds)
            cells = (*FITTED, *PREDICTED) if layout == usual else OTHERS
            measured |= {(layout, cell): one for cell, one in _measure(load, cells, options.rounds).items()}
            # The largest runs: they need the most memory.
            load(Cell(layout.max_batch, 2 * layout.instances))
            memory[layout] = machine.memory_mib(server.pid)
            if layout == usual:
                fitted = {(usual, cell) for cell in FITTED} | {(small, cell) for cell in OTHERS}
                numbers = fit({place: one for place, one in measured.items() if place in fitted}, cores)
                for cell in AT_RANDOM_TIMES:
                    rate = cell.share / numbers.each_s(layout, cell, most)
                    measured[layout, cell] = _at_random_times(server, manifest, options.seconds, cell, rate)
    fitted_memory = fit_memory({layout: memory[layout] for layout in (usual, small)})
    file = root / model / "1" / manifest.onnx.file
    return {
        "numbers": vars(numbers),
        "memory": vars(fitted_memory) | {"file_mib": round(file.stat().st_size / 2**20, 2)},
        "loads": [
            _compared(*place, one, numbers, fitted=place in fitted)
            for place, one in sorted(measured.items(), key=lambda item: servers.index(item[0][0]))
        ],
        "servers": [
            layout._asdict()
            | {
                "fitted": layout in (usual, small),
                "measured_mib": round(memory[layout], 1),
                "predicted_mib": round(fitted_memory.mib(layout), 1),
            }
            for layout in sorted(memory, key=servers.index)
        ],
    }


def _compared(layout: Layout, cell: Cell, one: Measured, numbers: Numbers, *, fitted: bool) -> dict[str, Any]:
    mean, p99 = numbers.latency_ms(layout, cell)
    predicted = {"cpu_us": numbers.cpu.of(cell, layout.batch(cell)), "latency_ms": mean, "p99_ms": p99}
    if not cell.share:
        predicted["rate"] = numbers.rate(layout, cell)
        # In turns, the model has no other latency than the mean.
        del predicted["p99_ms"]
    else:
        # The batches at random times are not known.
        del predicted["cpu_us"]
    found = vars(one)
    return {
        **layout._asdict(),
        **cell._asdict(),
        "fitted": fitted,
        "measured": {name: round(value, 3) for name, value in found.items()},
        "predicted": {name: round(value, 3) for name, value in predicted.items()},
        "error": {name: round(value / found[name] - 1, 3) for name, value in predicted.items()},
    }


def _measure(load: Load, cells: Sequence[Cell], rounds: int) -> dict[Cell, Measured]:
    runs: dict[Cell, list[Measured]] = {cell: [] for cell in cells}
    for number in range(rounds):
        for cell in harness.in_turn(cells, number):
            runs[cell].append(load(cell))
    return {cell: _median(values) for cell, values in runs.items()}


def _median(values: list[Measured]) -> Measured:
    return Measured(**harness.medians([vars(value) for value in values]))


def _at_random_times(server: Server, manifest: harness.Manifest, seconds: float, cell: Cell, rate: float) -> Measured:
    body = harness.infer_request(manifest, manifest.model, cell.rows).SerializeToString()
    warm_up_s = min(_WARM_UP_S, seconds)
    found = harness.open_load(server.address, [body], rate=rate, seed=0, seconds=seconds, warm_up_s=warm_up_s)
    latencies = sorted(1000 * value for value in found)
    return Measured(rate, 0, 0, 0, statistics.fmean(latencies), percentile(latencies, 99))


def _load(server: Server, manifest: harness.Manifest, seconds: float, cell: Cell) -> Measured:
    body = harness.infer_request(manifest, manifest.model, cell.rows).SerializeToString()
    before = _threads(server.pid)
    found = harness.load(
        server.address,
        [body],
        in_flight=cell.in_flight,
        seconds=seconds,
        server_pid=server.pid,
        warm_up_s=min(_WARM_UP_S, seconds),
    )
    if not found["server_cpu_us"]:
        if seconds > _LONGEST_S:
            raise SystemExit(f"no CPU time was counted in {seconds:g} s; the machine is too busy")
        return _load(server, manifest, 4 * seconds, cell)
    loop, all_threads = (after - began for began, after in zip(before, _threads(server.pid), strict=True))
    return Measured(
        rate=found["rate"],
        cpu_us=found["server_cpu_us"],
        loop_us=found["server_cpu_us"] * (loop / all_threads if all_threads else 1.0),
        load_us=found["load_cores"] / found["rate"] * 1e6,
        latency_ms=cell.in_flight / found["rate"] * 1000,
        p99_ms=found["p99_ms"],
    )


def _threads(pid: int) -> tuple[int, int]:
    """Returns the CPU time of the event loop, which is the main thread, and of all threads, in ticks of the clock."""
    loop, process = (Path(f"/proc/{pid}/{path}stat").read_text() for path in (f"task/{pid}/", ""))
    # The name before may have spaces.
    return _ticks(loop), _ticks(process)


def _ticks(stat: str) -> int:
    fields = stat.rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def _idle_mib() -> float:
    with tempfile.TemporaryDirectory(prefix="cnnserve-bench-") as folder:
        flags = ("--model-control-mode", "explicit")
        with harness.serving(Path(folder), *flags) as server:
            return machine.memory_mib(server.pid)


@contextlib.contextmanager
def _serving(root: Path, model: str, layout: Layout) -> Iterator[Server]:
    """Yields a server of the layout. Threads follow its cores."""
    with tempfile.TemporaryDirectory(prefix="cnnserve-bench-") as folder:
        copy = shutil.copytree(root / model, Path(folder) / model)
        config = copy / "config.pbtxt"
        text = re.sub(
            r"^max_batch_size: .*$", f"max_batch_size: {layout.max_batch}", config.read_text(), flags=re.MULTILINE
        )
        if layout.instances > 1:
            text += f"instance_group {{ kind: KIND_CPU count: {layout.instances} }}\n"
        config.write_text(text)
        with contextlib.ExitStack() as stack:
            with _on_cores(layout.cores):
                server = stack.enter_context(harness.serving(Path(folder)))
            yield server


_ALL = os.sched_getaffinity(0)


@contextlib.contextmanager
def _on_cores(number: int) -> Iterator[None]:
    """Processes that are started inside run on so many cores."""
    os.sched_setaffinity(0, sorted(_ALL)[-number:])
    try:
        yield
    finally:
        os.sched_setaffinity(0, _ALL)


if __name__ == "__main__":
    sys.exit(main())
