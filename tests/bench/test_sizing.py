"""The cost model of docs/sizing.md: what it predicts, and that the page has the tables of the newest result."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(BENCH))

import sizing_page  # noqa: E402
from sizing_model import Cell, Cost, Layout, Measured, Memory, Numbers, fit, fit_memory  # noqa: E402

USUAL = Layout(2, 1, 32)
NUMBERS = Numbers(2, Cost(50, 100, 400, 60), Cost(20, 10, 0, 0), Cost(30, 1, 0, 0), alone_ms=0.5, alone_row_ms=0.25)
SMALL = Layout(2, 1, 4)
PLACES = [(USUAL, Cell(1, 1)), (USUAL, Cell(1, 16)), (USUAL, Cell(8, 1)), (USUAL, Cell(8, 16))]
PLACES += [(SMALL, Cell(1, 16)), (SMALL, Cell(4, 16))]


def measured(numbers: Numbers, layout: Layout, cell: Cell) -> Measured:
    """A machine that does what the model says."""
    cpu, loop, load = (cost.of(cell, layout.batch(cell)) for cost in (numbers.cpu, numbers.loop, numbers.load))
    rate = numbers.rate(layout, cell)
    latency = cell.in_flight / rate * 1000
    return Measured(rate, cpu, loop, load, latency, latency)


def test_the_numbers_of_a_machine_that_follows_the_model_are_found() -> None:
    busy = replace(NUMBERS, busy=0.8)
    found = fit({place: measured(busy, *place) for place in PLACES}, 2)
    for name in ("cpu", "loop", "load"):
        assert getattr(found, name) == pytest.approx(getattr(busy, name), abs=1e-6)
    assert (found.alone_ms, found.alone_row_ms, found.busy) == pytest.approx((0.5, 0.25, 0.8))


def test_no_number_is_below_0() -> None:
    found = fit({place: Measured(100, 80 - place[1].rows, 10, 10, 1.0, 1.0) for place in PLACES}, 2)
    assert min(*found.cpu, *found.loop, *found.load, found.alone_ms, found.alone_row_ms) >= 0


@pytest.mark.parametrize(
    ("layout", "cell", "seconds"),
    [
        # Few in flight: each as alone.
        (USUAL, Cell(1, 1), 750e-6),
        (USUAL, Cell(1, 2), 750e-6 / 2),
        # One core of the server, all cores of the machine with the load, the event loop.
        (Layout(1, 1, 32), Cell(1, 16), (50 + 100 + 400 / 16 + 60 / 16) / 1e6),
        (USUAL, Cell(1, 16), (50 + 100 + 400 / 16 + 60 / 16 + 30 + 1) / 2e6),
        (Layout(64, 1, 32), Cell(1, 32), 30e-6),
    ],
)
def test_the_busiest_resource_decides(layout: Layout, cell: Cell, seconds: float) -> None:
    numbers = replace(NUMBERS, machine_cores=max(2, layout.cores))
    assert 1 / numbers.rate(layout, cell) == pytest.approx(seconds)


def test_a_run_has_the_rows_that_one_instance_has_in_flight() -> None:
    assert USUAL.batch(Cell(1, 16)) == 16
    assert USUAL.batch(Cell(8, 16)) == 32
    assert Layout(2, 2, 32).batch(Cell(1, 16)) == 8
    assert Layout(2, 2, 32).batch(Cell(8, 1)) == 8


def test_at_random_times_a_fuller_server_answers_later() -> None:
    latencies = [NUMBERS.latency_ms(USUAL, Cell(1, 1000, share)) for share in (0.01, 0.5, 0.8, 0.95)]
    assert latencies == sorted(latencies)
    assert all(mean < p99 for mean, p99 in latencies)
    assert latencies[0][0] == pytest.approx(1000 * NUMBERS.alone_s(1), rel=0.01)


def test_memory_follows_the_rows_that_run_at_once() -> None:
    found = fit_memory({layout: Memory(100, 2).mib(layout) for layout in (USUAL, Layout(2, 1, 4))})
    assert found.mib(Layout(2, 2, 32)) == pytest.approx(228)


def test_the_page_has_the_tables_of_the_newest_result() -> None:
    text = sizing_page.PAGE.read_text()
    results = sorted((BENCH / "results").glob("sizing-*.json"))
    if results:
        assert sizing_page.replaced(text, json.loads(results[-1].read_text())) == text, "python bench/sizing.py --page"
    else:
        assert "<!-- sizing.py writes this -->\n<!-- until here -->" in text


def test_a_page_without_a_place_for_the_tables_is_left_alone() -> None:
    result = {
        "machine": {"cores": 2, "cpu": "x"},
        "settings": {"seconds": 4},
        "idle_mib": 50,
        "commit": "x",
        "models": {},
    }
    with pytest.raises(ValueError, match="no place"):
        sizing_page.replaced("x", result)
