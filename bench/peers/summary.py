"""Medians over the rounds of a run, and shares of plain ONNX Runtime in the same round."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PLAIN, OWN, EMPTY = "plain ONNX Runtime", "cnnserve", "no model"
_NUMBERS = ("images_per_s", "p50_ms", "p99_ms", "cpu_ms")


@dataclass(frozen=True)
class Row:
    """One server with one load: medians over the rounds.

    `share`: images/s relative to plain ONNX Runtime in the same round; None for itself and without a model. `numbers`
    may lack latencies.
    """

    server: str
    protocol: str
    numbers: Mapping[str, float]
    share: float | None
    failed: int
    client_limit: str


def rows(results: Mapping[str, Sequence[Any]], kind: str, in_flight: int) -> list[Row]:
    """Returns the rows for one kind of input and one load, in the order of the servers.

    `results`: for each server its result in each round.
    """
    found = []
    for server, rounds in results.items():
        for name in rounds[0]["cells"] if rounds else ():
            its_kind, protocol, count = name.split(" ")
            if (its_kind, int(count)) != (kind, in_flight):
                continue
            cells = [each["cells"][name] for each in rounds]
            limit = [each["cells"].get(f"{kind} run {count}") for each in results.get(PLAIN, ())]
            found.append(_row(server, protocol, cells, limit))
    return found


def servers(results: Mapping[str, Sequence[Any]]) -> dict[str, dict[str, float]]:
    """Returns the medians of start-up in seconds and memory in MiB of each server, and the number of its processes."""
    names = ("start_s", "memory_mib", "processes")
    return {
        server: {name: _median([each[name] for each in rounds]) for name in names if rounds and name in rounds[0]}
        for server, rounds in results.items()
    }


def _row(server: str, protocol: str, cells: Sequence[Any], limits: Sequence[Any]) -> Row:
    shares = [cell["images_per_s"] / limit["images_per_s"] for cell, limit in zip(cells, limits, strict=False) if limit]
    return Row(
        server,
        "" if protocol == "run" else protocol,
        {name: _median([cell[name] for cell in cells]) for name in _NUMBERS if name in cells[0]},
        _median(shares) if shares and server not in (PLAIN, EMPTY) else None,
        sum(cell.get("failed", 0) for cell in cells),
        next((cell["client_limit"] for cell in cells if cell.get("client_limit")), ""),
    )


def _median(values: Sequence[float]) -> float:
    return statistics.median(values)
