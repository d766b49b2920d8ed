"""What follows from measured cells."""

from hypothesis import given
from hypothesis import strategies as st

from cnnserve.tools.bench import report
from cnnserve.tools.bench.cells import Cell, Load, best, knee

RATE = st.floats(0.1, 1e6)
BATCHES = st.dictionaries(st.integers(1, 1024), st.integers(1, 10**9))


def cell(load: Load, rate: float = 10.0, p50_ms: float = 5.0, **more: object) -> Cell:
    return Cell(load, 1, 10, rate, p50_ms, p50_ms, p50_ms, p50_ms, **more)  # type: ignore[arg-type]


CLOSED = st.builds(lambda n, rate, p50: cell(Load(concurrency=n), rate, p50), st.integers(1, 64), RATE, RATE)


@given(st.lists(CLOSED, min_size=2))
def test_no_closed_loop_has_more_power_than_the_knee(cells: list[Cell]) -> None:
    found = knee([*cells, cell(Load(rate=3.0), 1e9, 1e-9)])
    assert found in cells
    assert found is not None
    assert all(one.requests_per_s / one.p50_ms <= found.requests_per_s / found.p50_ms for one in cells)


def test_the_knee_of_a_server_that_batches() -> None:
    """A server takes 10 ms for up to 8 rows and lets the others wait."""
    loads = {1: (100.0, 10.0), 4: (400.0, 10.0), 8: (800.0, 10.0), 16: (800.0, 20.0), 64: (800.0, 80.0)}
    found = knee([cell(Load(concurrency=n), *numbers) for n, numbers in loads.items()])
    assert found is not None
    assert found.load.concurrency == 8


def test_no_knee_without_two_closed_loops() -> None:
    assert knee([]) is None
    assert knee([cell(Load(concurrency=1)), cell(Load(rate=5.0)), cell(Load(concurrency=4), 0.0, 0.0)]) is None
    assert best([]) is None


@given(BATCHES)
def test_the_mean_batch_is_that_of_all_runs(batches: dict[int, int]) -> None:
    mean = cell(Load(concurrency=1), batches=batches).mean_batch
    if batches:
        assert min(batches) - 1e-9 <= mean <= max(batches) + 1e-9 * max(batches)
        assert abs(mean * sum(batches.values()) - sum(a * b for a, b in batches.items())) <= 1e-6 * mean * sum(
            batches.values()
        )
    else:
        assert mean == 0


def test_when_the_client_is_the_limit() -> None:
    assert "0.90 cores" in cell(Load(concurrency=4), busiest=0.9).client_limit
    assert "3.0 ms late" in cell(Load(rate=4.0), late_ms=3.0).client_limit
    assert not cell(Load(rate=4.0), p50_ms=100.0, late_ms=3.0).client_limit
    assert not cell(Load(concurrency=4), busiest=0.5).client_limit
    assert "let only 3 be in flight" in cell(Load(concurrency=4), withheld=1).client_limit


def test_the_summary_names_failures_and_what_is_unknown() -> None:
    refused = cell(Load(concurrency=4), failed={"RESOURCE_EXHAUSTED": 7, "NOT_FOUND": 1})
    lines = report.summary([refused], "no files")
    assert "share of plain ONNX Runtime: unknown (no files)" in lines
    assert "failed at 4 in flight: 1 NOT_FOUND, 7 RESOURCE_EXHAUSTED" in lines
    assert report.share([refused], {1: 20.0, 8: 40.0}) == 0.25
    assert report.share([refused], "no files") is None
    assert report.row(Cell(Load(concurrency=4), 1, 0, 0.0, 0.0, 0.0, 0.0, 0.0)).split()[3:] == [
        *("0.0", "0.0", "-", "-", "-", "?", "0", "0.00")
    ]
