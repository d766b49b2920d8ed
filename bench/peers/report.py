"""The rows of a table, for the terminal and for the page."""

from peers.summary import Row

HEAD = ("server", "images/s", "of plain", "p50 ms", "p99 ms", "CPU ms a request")


def cells(row: Row) -> list[str]:
    """Returns a row's cells as text, for the columns of `HEAD`."""
    notes = [f"{row.failed} failed"] if row.failed else []
    notes += ["the load generator was the limit"] if row.client_limit else []
    title = f"{row.server} {row.protocol}".strip() + (f" ({', '.join(notes)})" if notes else "")
    share = "-" if row.share is None else f"{row.share:.2f}"
    return [
        title,
        rate(row.numbers["images_per_s"]),
        share,
        *(time_ms(row, name) for name in ("p50_ms", "p99_ms", "cpu_ms")),
    ]


def rate(value: float) -> str:
    """Returns images/s with three digits that count."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def time_ms(row: Row, name: str) -> str:
    """Returns a time in ms, "-" if the row has none."""
    value = row.numbers.get(name)
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
