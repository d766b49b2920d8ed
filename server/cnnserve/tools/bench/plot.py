"""Pictures of a run: throughput against latency, and the batch sizes. Needs matplotlib."""

import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .cells import Cell, knee
from .report import head, row, summary

FORMATS = ("svg", "png", "html")
COLOURS = {"p50": "#1f6f8b", "p90": "#d98e04", "p99": "#b23a48"}
# With more loads, their names would overlap.
_MOST_LEVEL = 7
_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
svg {{ width: 100%; height: auto; background: #fff; }} pre {{ overflow-x: auto; }}</style>
<main>
<h1>{title}</h1>
<div role="img" aria-label="Throughput against latency, and batch sizes. The table below has the numbers.">
{picture}
</div>
<pre tabindex="0" role="region" aria-label="Numbers">{table}</pre>
</main>
</html>
"""


def write(path: Path, title: str, cells: Sequence[Cell], plain: Mapping[int, float] | str) -> None:
    """Writes the picture in the format that the ending of `path` names. Raises `OSError`."""
    figure = _figure(title, cells)
    if path.suffix != ".html":
        # Without a date, the same numbers give the same file.
        figure.savefig(path, format=path.suffix[1:], metadata={"Date": None} if path.suffix == ".svg" else None)
        return
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    table = "\n".join((head(), *map(row, cells), "", *summary(cells, plain)))
    parts = {"title": html.escape(title), "picture": text[text.index("<svg") :], "table": html.escape(table)}
    path.write_text(_PAGE.format(**parts), encoding="utf-8")


def _figure(title: str, cells: Sequence[Cell]) -> Figure:
    figure = Figure(figsize=(9, 7), layout="constrained")
    latency, batches = figure.subplots(2, 1, height_ratios=(2, 1))
    # matplotlib reads text between two $ as mathematics.
    figure.suptitle(title.replace("$", r"\$"))
    _latency(latency, [cell for cell in cells if cell.requests])
    _batches(batches, cells)
    return figure


def _latency(axes: Axes, cells: Sequence[Cell]) -> None:
    closed = [cell for cell in cells if cell.load.concurrency]
    opened = [cell for cell in cells if not cell.load.concurrency]
    for name, colour in COLOURS.items():
        for group, style, kind in ((closed, "o-", "closed loop"), (opened, "x", "open loop")):
            if group:
                rates = [cell.images_per_s for cell in group]
                values = [getattr(cell, f"{name}_ms") for cell in group]
                axes.plot(rates, values, style, color=colour, label=f"{name}, {kind}")
    for cell in closed:
        axes.annotate(
            str(cell.load.concurrency), (cell.images_per_s, cell.p50_ms), (4, -12), textcoords="offset points"
        )
    if bend := knee(cells):
        axes.axvline(bend.images_per_s, color="#777", linestyle=":", label=f"knee: {bend.load}")
    axes.set_xlabel("images/s")
    axes.set_ylabel("latency, ms")
    axes.set_xlim(left=0)
    if cells:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.yaxis.set_major_formatter(_plain_number)
        axes.yaxis.set_minor_formatter(_sparse_number if high > 10 * low else _plain_number)
        axes.legend(fontsize="small")
    axes.grid(visible=True, which="both", alpha=0.25)


def _plain_number(value: float, _: float) -> str:
    return f"{value:g}"


def _sparse_number(value: float, _: float) -> str:
    """Only 2 and 5 of each decade, so that the numbers do not overlap."""
    return f"{value:g}" if f"{value:e}"[0] in "25" else ""


def _batches(axes: Axes, cells: Sequence[Cell]) -> None:
    """Draws, for each load, which share of the images ran in batches of each size."""
    places: Any = range(len(cells))
    sizes = sorted({size for cell in cells for size in cell.batches})
    bottoms = [0.0] * len(cells)
    for number, size in enumerate(sizes):
        shares = [_image_share(cell, size) for cell in cells]
        shade = 0.85 - 0.7 * number / max(1, len(sizes) - 1)
        axes.bar(
            places, shares, bottom=bottoms, color=(shade, shade, 1 - (1 - shade) / 3), edgecolor="#444", linewidth=0.3
        )
        for place, (bottom, part) in enumerate(zip(bottoms, shares, strict=True)):
            if part > 0.08:
                axes.text(
                    place,
                    bottom + part / 2,
                    str(size),
                    ha="center",
                    va="center",
                    fontsize="small",
                    color="white" if shade < 0.5 else "black",
                )
        bottoms = [bottom + part for bottom, part in zip(bottoms, shares, strict=True)]
    turned: Any = {"rotation": 30, "ha": "right"} if len(cells) > _MOST_LEVEL else {}
    axes.set_xticks(places, [str(cell.load) for cell in cells], **turned)
    axes.set_ylabel("images by batch size" if sizes else "batch sizes unknown")
    axes.set_ylim(0, 1)


def _image_share(cell: Cell, size: int) -> float:
    total = sum(batch * count for batch, count in cell.batches.items())
    return size * cell.batches.get(size, 0) / total if total else 0.0
