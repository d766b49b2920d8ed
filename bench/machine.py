"""What /proc says of processes and of the machine. Standard library only: every measuring process imports it."""

import os
import platform
from collections.abc import Sequence
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, all its threads."""
    # The name may hold spaces and parentheses; the fields begin after the last one.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def busy_seconds() -> float:
    """CPU time that is gone on the whole machine: everything but idle and waiting for disks; stolen time counts."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / _TICKS


def memory_mib(pid: int) -> float:
    """Memory of a process, its share of what it shares (PSS)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise OSError(f"process {pid} tells no PSS")


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value that `share` of the ordered values do not exceed."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def cores() -> int:
    """CPUs this process may run on."""
    return len(os.sched_getaffinity(0))


def describe() -> dict[str, object]:
    """The machine, in words a reader of old results needs."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": names[0].partition(":")[2].strip() if names else platform.machine(),
        "cores": cores(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
    }
