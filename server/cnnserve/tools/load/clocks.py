"""Reads CPU times of processes and of the machine from /proc."""

import os
from pathlib import Path

_STAT = Path("/proc/stat")
_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """Returns user and system time of a process and all its threads, in seconds."""
    # The name may contain spaces and parentheses; the fields begin after the last parenthesis.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def busy_seconds() -> float:
    """Returns the used CPU time of the whole machine in seconds: with stolen time, without idle time and disk waits.

    0.0 if the operating system has no /proc.
    """
    if not _STAT.exists():
        return 0.0
    user, nice, system, _, _, irq, softirq, steal = map(int, _STAT.read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / _TICKS
