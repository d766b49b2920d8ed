"""The results of a run: one cell for each load, the knee, and the share of plain ONNX Runtime."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

# A load process that uses more of a core than this is too slow for its load.
BUSY = 0.8
# If it is this much too late, in ms and as a share of the median latency, the latencies are partly its own.
LATE_MS = 2.0
LATE_SHARE = 0.1


@dataclass(frozen=True)
class Load:
    """A load: a closed loop with `concurrency` requests in flight, or an open loop with `rate` requests/s."""

    concurrency: int = 0
    rate: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.concurrency} in flight" if self.concurrency else f"{self.rate:,.{0 if self.rate >= 100 else 2}f}/s"
        )


@dataclass(frozen=True)
class Cell:
    """What one load gave.

    Rates count successful requests, and latencies are theirs. `failed` counts the other requests by status. `batches`
    counts the runs of the server by batch size; it is empty if the server did not tell. `busiest`: CPU time of the
    busiest load process, in cores. `late_ms`: 99th percentile of how late requests of an open loop were sent.
    `server_cpu_ms`: CPU time of the server for each request, 0 if unknown. `withheld`: how many requests of a closed
    loop were not in flight, because the server limits those of a connection.
    """

    load: Load
    images: int
    requests: int
    requests_per_s: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    failed: Mapping[str, int] = field(default_factory=dict)
    batches: Mapping[int, int] = field(default_factory=dict)
    processes: int = 1
    busiest: float = 0.0
    late_ms: float = 0.0
    server_cpu_ms: float = 0.0
    withheld: int = 0

    @property
    def images_per_s(self) -> float:
        """Images of successful requests a second."""
        return self.requests_per_s * self.images

    @property
    def mean_batch(self) -> float:
        """Mean number of images in a run of the server, 0 if unknown."""
        runs = sum(self.batches.values())
        return sum(size * count for size, count in self.batches.items()) / runs if runs else 0.0

    @property
    def client_limit(self) -> str:
        """Why the load generator rather than the server may have been the limit; "" if it was not."""
        if self.busiest > BUSY:
            return f"a load process used {self.busiest:.2f} cores"
        if self.late_ms > max(LATE_MS, LATE_SHARE * self.p50_ms):
            return f"requests were sent up to {self.late_ms:.1f} ms late (p99)"
        if self.withheld:
            return f"the server let only {self.load.concurrency - self.withheld} be in flight; use more --connections"
        return ""

    def as_json(self) -> dict[str, Any]:
        """Returns the cell for JSON."""
        more = {name: getattr(self, name) for name in ("images_per_s", "mean_batch", "client_limit")}
        return asdict(self) | more | {"load": str(self.load)} | asdict(self.load)


def knee(cells: Sequence[Cell]) -> Cell | None:
    """Returns the closed loop with the largest rate for each ms of median latency (Kleinrock's power).

    Below it the server has time left; above it more load buys more latency than throughput. None if there are fewer
    than two closed loops with responses.
    """
    closed = [cell for cell in cells if cell.load.concurrency and cell.p50_ms > 0]
    return max(closed, key=lambda cell: cell.requests_per_s / cell.p50_ms) if len(closed) > 1 else None


def best(cells: Sequence[Cell]) -> Cell | None:
    """Returns the cell with the largest rate, None without cells."""
    return max(cells, key=lambda cell: cell.requests_per_s, default=None)
