"""How much memory this process may use: the limit of its cgroup, as the CPU budget follows the cgroup's quota."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cnnserve.process.cpu import CGROUP_ROOT, MEMBERSHIP, cgroup_folders

_MIB = 2**20
# cgroup v1 says "no limit" by a number near 2^63.
_NO_LIMIT = 2**60
# Without a limit, requests may hold this.
DEFAULT_BUDGET_MIB = 1024
# Of what is free below the limit. The rest is for copies that no budget counts, and for a model that is being loaded.
_SHARE = 0.5
_LEAST_MIB = 16


@dataclass(frozen=True)
class Budget:
    """The memory that requests may hold, in MiB, and where the number comes from."""

    mib: int
    reason: str
    # What an explicit setting was cut to, if it was.
    warning: str = ""


def memory_limit(root: Path = CGROUP_ROOT, membership: Path = MEMBERSHIP) -> int | None:
    """Returns the smallest memory limit from this process's cgroup up to the root, in bytes; None if there is none."""
    found = find(root, membership)
    return found[0] if found else None


def find(root: Path = CGROUP_ROOT, membership: Path = MEMBERSHIP) -> tuple[int, Path] | None:
    """Returns the smallest memory limit in bytes, and the file of the cgroup that sets it; None if there is none."""
    return min(_limits(root, membership), default=None)


def budget(asked_mib: int, limit: int | None, used: int) -> Budget:
    """Returns the budget for `max_pending_mib` (0: follow the machine).

    `limit` is `memory_limit()`; `used` are the bytes that the process takes without requests, its models included.
    """
    if limit is None:
        reason = "set by max_pending_mib" if asked_mib else "this process has no memory limit"
        return Budget(asked_mib or DEFAULT_BUDGET_MIB, reason)
    free_mib = max(0, limit - used) // _MIB
    most = max(_LEAST_MIB, int(free_mib * _SHARE))
    reason = f"half of the {free_mib} MiB that the models leave of the memory limit of {limit // _MIB} MiB"
    if asked_mib > most:
        return Budget(most, reason, f"max_pending_mib is {asked_mib} and is cut to {most}: {reason}")
    return Budget(asked_mib or most, "set by max_pending_mib" if asked_mib else reason)


def _limits(root: Path, membership: Path) -> Iterator[tuple[int, Path]]:
    for folder in cgroup_folders(root, membership, "memory"):
        # cgroup v2, then v1.
        for name in ("memory.max", "memory.limit_in_bytes"):
            try:
                text = (folder / name).read_text().strip()
            except OSError:
                continue
            if text.isdecimal() and int(text) < _NO_LIMIT:
                yield int(text), folder / name
