"""One picture a model: images/s and latency of each server. Needs matplotlib (extra `plot`)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cnnserve.tools.bench.plot import COLOURS
from peers import summary
from peers.report import rate
from peers.summary import EMPTY, OWN, PLAIN, Row

_TITLES = {"tensor": "tensors", "image": "JPEGs"}
_OTHERS, _FLOOR = "#9bb7c4", "#cccccc"
_FEW = 2


def write(path: Path, title: str, results: Mapping[str, Sequence[Any]]) -> None:
    """Writes the picture: a column for each kind of input, with the largest number of requests in flight."""
    kinds = [kind for kind in _TITLES if _rows(results, kind)]
    # The same numbers give the same file.
    with mpl.rc_context({"svg.hashsalt": "cnnserve", "svg.fonttype": "none"}):
        figure = Figure(figsize=(9, 5), layout="constrained")
        figure.suptitle(f"{title}, {_most(results)} requests in flight")
        axes = figure.subplots(2, len(kinds), squeeze=False, height_ratios=(3, 2))
        for column, kind in enumerate(kinds):
            rows = _rows(results, kind)
            shown = _shown(rows)
            _rates(axes[0][column], kind, shown, [row.numbers["images_per_s"] for row in rows if row.server == PLAIN])
            _latencies(axes[1][column], shown)
        figure.savefig(path, format="svg", metadata={"Date": None})


def _rows(results: Mapping[str, Sequence[Any]], kind: str) -> list[Row]:
    return summary.rows(results, kind, _most(results))


def _most(results: Mapping[str, Sequence[Any]]) -> int:
    return max(int(name.split(" ")[2]) for name in results[OWN][0]["cells"])


def _shown(rows: Sequence[Row]) -> list[Row]:
    """Returns the servers; the one without a model only where it is no more than a few times faster than the others."""
    servers = [row for row in rows if row.server not in (PLAIN, EMPTY)]
    most = _FEW * max(row.numbers["images_per_s"] for row in servers)
    return servers + [row for row in rows if row.server == EMPTY and row.numbers["images_per_s"] < most]


def _rates(axes: Axes, kind: str, rows: Sequence[Row], plain: Sequence[float]) -> None:
    rates = [row.numbers["images_per_s"] for row in rows]
    colours = [COLOURS["p50"] if row.server == OWN else _FLOOR if row.server == EMPTY else _OTHERS for row in rows]
    bars = axes.barh(_names(rows), rates, color=colours)
    axes.bar_label(bars, [rate(value) for value in rates], padding=3, fontsize="small")
    for value in plain:
        if value < _FEW * max(rates):
            axes.axvline(value, color=COLOURS["p99"], linestyle=":", label=PLAIN)
            axes.legend(fontsize="small", loc="lower right")
    axes.set_xlabel(f"images/s, {_TITLES[kind]}")
    axes.margins(x=0.15)
    axes.invert_yaxis()


def _latencies(axes: Axes, rows: Sequence[Row]) -> None:
    for name in ("p50", "p99"):
        axes.plot([row.numbers[f"{name}_ms"] for row in rows], _names(rows), "o", color=COLOURS[name], label=name)
    axes.set_xlabel("latency, ms")
    axes.set_xlim(left=0)
    axes.grid(visible=True, alpha=0.25)
    axes.legend(fontsize="small")
    axes.invert_yaxis()


def _names(rows: Sequence[Row]) -> list[str]:
    return [f"{row.server} {row.protocol}" for row in rows]
