"""The number of CPU threads that this process may use."""

import os
from pathlib import Path

_CGROUP_ROOT = Path("/sys/fs/cgroup")


def cpu_budget(cgroup_root: Path = _CGROUP_ROOT, membership: Path = Path("/proc/self/cgroup")) -> int:
    """Returns the number of CPUs in the affinity mask, or fewer if the cgroup's quota allows fewer; at least 1.

    A quota of 2.5 CPUs gives 2, because a third thread would be stopped for part of every period.
    """
    available = len(os.sched_getaffinity(0))
    quota = _quota(cgroup_root, membership)
    return max(1, available if quota is None else min(available, int(quota)))


def _quota(root: Path, membership: Path) -> float | None:
    """Returns the smallest quota from this process's cgroup up to the root, in CPUs; None if there is none."""
    quotas = [q for folder in cgroup_folders(root, membership, "cpu") if (q := _read_quota(folder)) is not None]
    return min(quotas, default=None)


def cgroup_folders(root: Path, membership: Path, controller: str) -> list[Path]:
    """Returns the folders of this process's cgroup and of all above it, for one controller; some may not exist."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        lines = []
    folders = [root, root / controller]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "" or controller in controllers.split(","):
            # A container may see the host's path although only its own cgroup is mounted, so folders may be missing.
            base = root if controllers == "" else root / controller
            parts = [part for part in path.split("/") if part not in ("", "..")]
            folders += [base.joinpath(*parts[: depth + 1]) for depth in range(len(parts))]
    return folders


def _read_quota(folder: Path) -> float | None:
    try:
        # cgroup v2: "max 100000" or "200000 100000"
        quota, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if quota in ("max", "-1"):
        return None
    return int(quota) / int(period)
