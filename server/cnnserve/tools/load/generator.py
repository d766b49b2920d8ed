"""Keeps connections busy, and measures."""

import os
import selectors
import time

from .clocks import busy_seconds, cpu_seconds, percentile
from .http1 import HttpConnection
from .http2 import Connection


def run(
    connections: list[Connection] | list[HttpConnection], warm_up_s: float, seconds: float, server_pid: int
) -> dict[str, float]:
    """Keeps all connections busy and returns the rates, latencies and CPU times between the warm-up and the end."""
    selector = selectors.DefaultSelector()
    for connection in connections:
        selector.register(connection.socket, selectors.EVENT_READ, connection)
        connection.fill()
    started = time.perf_counter()
    _loop(selector, started + warm_up_s)
    before = _clocks(server_pid)
    _loop(selector, started + warm_up_s + seconds)
    server_s, own_s, busy_s = (after - first for first, after in zip(before, _clocks(server_pid), strict=True))
    ended = sorted(pair for connection in connections for pair in connection.ended)
    result = _summary(ended, started + warm_up_s)
    result["failed"] = sum(connection.failed for connection in connections)
    result["server_cpu_us"] = server_s / seconds / result["rate"] * 1e6 if result["rate"] else 0.0
    result["server_cores"] = server_s / seconds
    result["load_cores"] = own_s / seconds
    result["other_cores"] = max(0.0, busy_s - server_s - own_s) / seconds
    return result


def _loop(selector: selectors.BaseSelector, end: float) -> None:
    while (left := end - time.perf_counter()) > 0:
        for key, _ in selector.select(left):
            key.data.receive()
            key.data.fill()


def _clocks(server_pid: int) -> tuple[float, float, float]:
    server_s = cpu_seconds(server_pid) if server_pid else 0.0
    return server_s, cpu_seconds(os.getpid()), busy_seconds()


def _summary(ended: list[tuple[float, float]], since: float) -> dict[str, float]:
    """Returns rate and latencies.

    The time for the rate begins and ends with a response, so that it contains whole batches.
    """
    window = [pair for pair in ended if pair[0] > since]
    if not window:
        return {"rate": 0.0, "requests": 0, "p50_ms": 0.0, "p99_ms": 0.0}
    first = max((at for at, _ in ended if at <= since), default=since)
    latencies = sorted(latency for _, latency in window)
    return {
        "rate": len(window) / (window[-1][0] - first),
        "requests": len(window),
        "p50_ms": percentile(latencies, 0.5) * 1e3,
        "p99_ms": percentile(latencies, 0.99) * 1e3,
    }
