"""The cost model of docs/sizing.md: images/s, latency and memory from model, cores, instances, batch and load.

A request with `rows` rows in a batch costs CPU time in the server, part of it on the event loop, which is one thread:

    request + rows * (row + run / batch) + pause / in_flight

If few requests are in flight, the server often falls asleep and has to be woken: that is `pause`.

So many of them are answered a second as the busiest resource allows: the server's cores, its event loop, or here, where
the load is made on the same machine, all cores. If few are in flight, each takes as long as one alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

_STEPS = 100


class Cell(NamedTuple):
    """A load: requests of `rows` rows, `in_flight` at a time, or with `share` of the largest rate at random times."""

    rows: int
    in_flight: int
    share: float = 0.0


class Layout(NamedTuple):
    """A server: its cores, the instances of the model, and its maximum batch."""

    cores: int
    instances: int
    max_batch: int

    def batch(self, cell: Cell) -> float:
        """Returns the rows in a run under a load."""
        return float(min(self.max_batch, max(cell.rows, cell.in_flight * cell.rows / self.instances)))


class Cost(NamedTuple):
    """Times in µs: of a request, of each row, of each run, and of a pause."""

    request: float
    row: float
    run: float
    pause: float

    def of(self, cell: Cell, batch: float) -> float:
        """Returns the time of a request."""
        return sum(number * factor for number, factor in zip(self, _features(cell, batch), strict=True))


def _features(cell: Cell, batch: float) -> tuple[float, ...]:
    return 1.0, float(cell.rows), cell.rows / batch, 1 / cell.in_flight


@dataclass(frozen=True)
class Measured:
    """What was measured under a load, for each request. `p99_ms` is that of the load, `latency_ms` the mean."""

    rate: float
    cpu_us: float
    loop_us: float
    load_us: float
    latency_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Numbers:
    """The numbers of a model on a machine.

    `cpu`: of the server; `loop`: its part on the event loop; `load`: of whoever makes the load. A request alone takes
    `alone_ms` and `alone_row_ms` for each row. `busy`: the share of the time in which the busiest resource works.
    """

    machine_cores: int
    cpu: Cost
    loop: Cost
    load: Cost
    alone_ms: float
    alone_row_ms: float
    busy: float = 1.0

    def alone_s(self, rows: int) -> float:
        """Returns the latency of a request without any other."""
        return (self.alone_ms + rows * self.alone_row_ms) / 1000

    def each_s(self, layout: Layout, cell: Cell, batch: float) -> float:
        """Returns the time between two responses if requests always wait."""
        cpu, loop, load = (cost.of(cell, batch) for cost in (self.cpu, self.loop, self.load))
        return max(cpu / layout.cores, loop, (cpu + load) / self.machine_cores) / 1e6 / self.busy

    def rate(self, layout: Layout, cell: Cell) -> float:
        """Returns the requests/s if `in_flight` of them are always in flight."""
        each = self.each_s(layout, cell, layout.batch(cell))
        return 1 / max(each, self.alone_s(cell.rows) / cell.in_flight)

    def latency_ms(self, layout: Layout, cell: Cell) -> tuple[float, float]:
        """Returns the mean latency and its 99th percentile.

        At random times, a request waits for the rest of the run before its own, and then for its own run, which has
        more rows the more come while another one runs.
        """
        if not cell.share:
            # Little's law. In turns, all wait alike.
            mean = cell.in_flight / self.rate(layout, cell) * 1000
            return mean, mean
        rate = cell.share / self.each_s(layout, cell, layout.max_batch)
        first = run = self.each_s(layout, cell, cell.rows)
        for _ in range(_STEPS):
            batch = min(float(layout.max_batch), max(float(cell.rows), rate * run * cell.rows))
            run = batch / cell.rows * self.each_s(layout, cell, batch)
        alone = self.alone_s(cell.rows) + run - first
        return 1000 * (alone + cell.share * run / 2), 1000 * (alone + run)


def fit(measured: Mapping[tuple[Layout, Cell], Measured], machine_cores: int) -> Numbers:
    """Returns the numbers that fit best, in relative errors.

    Needs one request in flight, and many, of two sizes, and two maximum batches.
    """

    def cost(value: Callable[[Measured], float]) -> Cost:
        features = [_features(cell, layout.batch(cell)) for layout, cell in measured]
        return Cost(*_least(features, [value(one) for one in measured.values()]))

    alone = [(cell, one) for (_, cell), one in measured.items() if cell.in_flight == 1]
    fixed, each = _least([(1.0, float(cell.rows)) for cell, _ in alone], [one.latency_ms for _, one in alone])
    numbers = Numbers(
        machine_cores,
        cost(lambda one: one.cpu_us),
        cost(lambda one: one.loop_us),
        cost(lambda one: one.load_us),
        fixed,
        each,
    )
    full = [one.rate / numbers.rate(*place) for place, one in measured.items() if place[1].in_flight > 1]
    return replace(numbers, busy=min(1.0, float(np.median(full))))


def _least(features: Sequence[Sequence[float]], values: Sequence[float]) -> list[float]:
    """Returns the factors of features, none below 0, with the least relative error."""
    weights = 1 / np.maximum(np.array(values), 1e-9)
    matrix = np.array(features) * weights[:, None]
    columns = list(range(matrix.shape[1]))
    found = np.zeros(matrix.shape[1])
    while columns:
        part = np.linalg.lstsq(matrix[:, columns], np.ones(len(values)), rcond=None)[0]
        if (part >= 0).all():
            found[columns] = part
            break
        columns.remove(columns[int(part.argmin())])
    return list(map(float, found))


@dataclass(frozen=True)
class Memory:
    """The memory of a server with one model: `fixed_mib`, and `row_mib` for each row that its instances run at once."""

    fixed_mib: float
    row_mib: float

    def mib(self, layout: Layout) -> float:
        """Returns the memory of a server that has run full batches."""
        return self.fixed_mib + self.row_mib * layout.instances * layout.max_batch


def fit_memory(measured: Mapping[Layout, float]) -> Memory:
    """Returns the numbers for two layouts or more."""
    features = [(1.0, float(layout.instances * layout.max_batch)) for layout in measured]
    return Memory(*_least(features, list(measured.values())))
