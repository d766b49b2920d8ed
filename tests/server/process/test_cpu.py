"""The CPU budget from cgroup files in the form in which kernels write them."""

import os
import platform
from pathlib import Path

import pytest

from cnnserve.process.cpu import cpu_budget, decoding_threads, processor

CPUS = len(os.sched_getaffinity(0))


def budget(root: Path, membership: str) -> int:
    (root / "membership").write_text(membership)
    return cpu_budget(root, root / "membership")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("max 100000", CPUS), ("100000 100000", 1), ("50000 100000", 1), ("199000 100000", 1), ("9900000 100000", CPUS)],
)
def test_cgroup_v2(tmp_path: Path, text: str, expected: int) -> None:
    (tmp_path / "cpu.max").write_text(text + "\n")
    assert budget(tmp_path, "0::/\n") == expected


def test_the_tightest_parent_counts(tmp_path: Path) -> None:
    (tmp_path / "pod" / "box").mkdir(parents=True)
    (tmp_path / "pod" / "cpu.max").write_text("100000 100000\n")
    (tmp_path / "pod" / "box" / "cpu.max").write_text("max 100000\n")
    assert budget(tmp_path, "0::/pod/box\n") == 1


def test_cgroup_v1(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("100000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert budget(tmp_path, "4:cpu,cpuacct:/docker/abc\n") == 1
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert budget(tmp_path, "4:cpu,cpuacct:/docker/abc\n") == CPUS


def test_no_cgroup_at_all(tmp_path: Path) -> None:
    assert cpu_budget(tmp_path, tmp_path / "nothing") == CPUS


def test_the_affinity_mask_counts() -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert cpu_budget() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize("controllers", ["cpu", "cpu,cpuacct", "cpuacct,cpu"])
@pytest.mark.parametrize("quota", ["pod", "pod/box"])
def test_a_parent_counts_in_cgroup_v1_too(tmp_path: Path, controllers: str, quota: str) -> None:
    (tmp_path / "cpu" / "pod" / "box").mkdir(parents=True)
    (tmp_path / "cpu" / quota / "cpu.cfs_quota_us").write_text("100000\n")
    (tmp_path / "cpu" / quota / "cpu.cfs_period_us").write_text("100000\n")
    assert budget(tmp_path, f"7:memory:/\n4:{controllers}:/pod/box\n") == 1
    # Other controllers have groups of their own.
    assert budget(tmp_path, "4:cpuset:/pod/box\n") == CPUS


def test_a_path_with_colons_and_parents_stays_below_the_root(tmp_path: Path) -> None:
    (tmp_path / "group" / "a:b").mkdir(parents=True)
    (tmp_path / "group" / "a:b" / "cpu.max").write_text("100000 100000\n")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path.parent / "cpu.max").write_text("100000 100000\n")
    assert budget(tmp_path / "group", "0::/a:b\n") == 1
    assert budget(tmp_path / "group", "0::/../../a\n") == CPUS
    assert budget(tmp_path / "group", "0::/../a:b/\n") == 1


def test_the_name_of_the_processor() -> None:
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.partition(":")[0].strip() == "model name"
    ]
    assert processor() == (names[0] if names else platform.machine())


@pytest.mark.parametrize(("threads", "expected"), [(1, 1), (2, 1), (3, 2), (16, 15)])
def test_decoding_leaves_a_thread_to_runs(threads: int, expected: int) -> None:
    assert decoding_threads(threads) == expected
