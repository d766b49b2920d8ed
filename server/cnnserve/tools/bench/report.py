"""What bench prints: a table that grows line by line, and what follows from it."""

from collections.abc import Mapping, Sequence
from typing import Any

from .cells import Cell, best, knee

_HEAD = ("load", "requests/s", "images/s", "p50 ms", "p90 ms", "p99 ms", "batch", "failed", "client")
_WIDTHS = (14, 11, 10, 9, 9, 9, 6, 7, 7)


def head() -> str:
    """Returns the heads of the columns."""
    return _line(_HEAD)


def row(cell: Cell) -> str:
    """Returns the line of a cell. `client`: CPU time of the busiest load process in cores, `!` if it was the limit."""
    batch = f"{cell.mean_batch:.1f}" if cell.batches else "?"
    client = f"{cell.busiest:.2f}" + ("!" if cell.client_limit else "")
    times = [f"{value:,.2f}" if cell.requests else "-" for value in (cell.p50_ms, cell.p90_ms, cell.p99_ms)]
    rates = [f"{value:,.1f}" for value in (cell.requests_per_s, cell.images_per_s)]
    return _line((str(cell.load), *rates, *times, batch, str(sum(cell.failed.values())), client))


def summary(cells: Sequence[Cell], plain: Mapping[int, float] | str) -> list[str]:
    """Returns what follows from the cells: best rate, knee, share of plain ONNX Runtime, failures, client limits."""
    lines = []
    top, bend = best(cells), knee(cells)
    if top is not None and top.requests_per_s:
        lines.append(f"most: {top.images_per_s:,.1f} images/s at {top.load}")
    if bend is not None:
        lines.append(f"knee: {bend.load}, {bend.images_per_s:,.1f} images/s with p50 {bend.p50_ms:.2f} ms")
    lines.append(_plain(top, plain))
    for cell in cells:
        if cell.failed:
            counts = ", ".join(f"{count} {status}" for status, count in sorted(cell.failed.items()))
            lines.append(f"failed at {cell.load}: {counts}")
        if cell.client_limit:
            lines.append(f"client limit at {cell.load}: {cell.client_limit}")
    return lines


def share(cells: Sequence[Cell], plain: Mapping[int, float] | str) -> float | None:
    """Returns the best rate as a share of the best rate of plain ONNX Runtime, None if that is unknown."""
    top = best(cells)
    if isinstance(plain, str) or top is None or not max(plain.values(), default=0.0):
        return None
    return top.images_per_s / max(plain.values())


def as_json(about: Mapping[str, Any], cells: Sequence[Cell], plain: Mapping[int, float] | str) -> dict[str, Any]:
    """Returns the whole run for JSON."""
    bend = knee(cells)
    return {
        **about,
        "plain_images_per_s": plain if not isinstance(plain, str) else None,
        "plain_unknown": plain if isinstance(plain, str) else "",
        "share_of_plain": share(cells, plain),
        "knee": str(bend.load) if bend else None,
        "cells": [cell.as_json() for cell in cells],
    }


def _plain(top: Cell | None, plain: Mapping[int, float] | str) -> str:
    if isinstance(plain, str):
        return f"share of plain ONNX Runtime: unknown ({plain})"
    size = max(plain, key=lambda batch: plain[batch])
    part = share([top] if top else [], plain)
    text = "" if part is None else f"{part:.2f} of "
    return f"share of plain ONNX Runtime: {text}{plain[size]:,.1f} images/s (batch {size}, all CPU threads, tensors)"


def _line(cells: Sequence[str]) -> str:
    return " ".join(
        cell.ljust(width) if place == 0 else cell.rjust(width)
        for place, (cell, width) in enumerate(zip(cells, _WIDTHS, strict=True))
    )
