"""Reads CPU times and memory of processes and of the machine from /proc.

It uses the standard library only, because every process that measures imports it.
"""

import os
import platform
from collections.abc import Sequence
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """Returns user and system time of a process and all its threads, in seconds."""
    # The name may contain spaces and parentheses; the fields begin after the last parenthesis.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def busy_seconds() -> float:
    """Returns the used CPU time of the whole machine in seconds: with stolen time, without idle time and disk waits."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / _TICKS


def memory_mib(pid: int) -> float:
    """Returns the memory of a process in MiB; of shared memory, its share counts (PSS)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/{pid}/smaps_rollup has no PSS")


def percentile(ordered: Sequence[float], share: float) -> float:
    """Returns the value that `share` (0 to 1) of the ordered values do not exceed."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def cores() -> int:
    """Returns the number of CPUs on which this process may run."""
    return len(os.sched_getaffinity(0))


def describe() -> dict[str, object]:
    """Returns what a reader of old results needs to know of the machine."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": names[0].partition(":")[2].strip() if names else platform.machine(),
        "cores": cores(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
    }
