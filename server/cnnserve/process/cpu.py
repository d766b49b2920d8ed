"""The number of CPU threads that this process may use."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


@dataclass(frozen=True)
class CpuBudget:
    """The number of CPU threads, and where it comes from.

    `affinity`: CPUs in the affinity mask. `quota`: CPUs that the cgroup `folder` allows; None if none has a quota.
    """

    affinity: int
    quota: float | None = None
    folder: Path | None = None

    @property
    def threads(self) -> int:
        """The CPUs in the affinity mask, or fewer if the quota allows fewer; at least 1.

        A quota of 2.5 CPUs gives 2, because a third thread would be stopped for part of every period.
        """
        return max(1, self.affinity if self.quota is None else min(self.affinity, int(self.quota)))


def cpu_budget(root: Path = CGROUP_ROOT, membership: Path = MEMBERSHIP) -> int:
    """Returns the number of CPU threads that this process may use; see `find`."""
    return find(root, membership).threads


def find(root: Path = CGROUP_ROOT, membership: Path = MEMBERSHIP) -> CpuBudget:
    """Returns the CPU budget: of the quotas from this process's cgroup up to the root, the smallest counts."""
    folders = cgroup_folders(root, membership, "cpu")
    quotas = [(quota, folder) for folder in folders if (quota := _read_quota(folder)) is not None]
    # macOS has no affinity masks.
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return CpuBudget(affinity, *min(quotas, default=(None, None)))


def processor() -> str:
    """Returns the name of the processor, or that of its architecture if the system does not tell more."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def decoding_threads(threads: int) -> int:
    """Returns the number of threads that decode images beside `threads` threads for runs."""
    # As many decoding threads as CPU threads would not decode more images/s, but would delay the event loop and the
    # runs: the p99 of ResNet-18 with JPEGs on 2 cores rose by 10 % to 75 %. So the server uses one thread less.
    return max(1, threads - 1)


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
