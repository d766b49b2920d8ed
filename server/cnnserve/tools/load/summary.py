"""The numbers of one measurement."""

from collections import Counter

from cnnserve.batching.percentile import percentile

from .answers import OK
from .generator import Measured


def summary(measured: Measured, seconds: float) -> dict[str, object]:
    """Returns rate, latencies, counts of failed requests by status, and CPU times.

    Only responses with status OK count for rate and latencies.
    """
    ended = sorted(entry for entry in measured.ended if entry[2] == OK)
    failed = Counter(status for _, _, status in measured.ended if status != OK)
    latencies = sorted(at - due for at, due, _ in ended)
    if measured.finished is not None:
        rate = measured.finished / seconds
    else:
        rate = len(ended) / (max(ended[-1][0], measured.end) - measured.begin) if ended else 0.0
    lags = sorted(measured.lags)
    other_s = max(0.0, measured.busy_cpu_s - measured.server_cpu_s - measured.own_cpu_s)
    return {
        "rate": rate,
        "requests": len(ended),
        "p50_ms": percentile(latencies, 50) * 1e3 if latencies else 0.0,
        "p99_ms": percentile(latencies, 99) * 1e3 if latencies else 0.0,
        "failed": failed.total(),
        "statuses": dict(failed),
        "withheld": measured.withheld,
        "lag_p99_ms": percentile(lags, 99) * 1e3 if lags else 0.0,
        "server_cpu_us": measured.server_cpu_s / seconds / rate * 1e6 if rate else 0.0,
        "server_cores": measured.server_cpu_s / seconds,
        "load_cores": measured.own_cpu_s / seconds,
        "other_cores": other_s / seconds,
    }
