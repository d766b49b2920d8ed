"""Reads the memory of processes from /proc, and describes the machine."""

import os
import platform
from pathlib import Path


def memory_mib(pid: int) -> float:
    """Returns the memory of a process in MiB; of shared memory, its share counts (PSS)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/{pid}/smaps_rollup has no PSS")


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
