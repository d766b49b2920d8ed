"""The memory budget from cgroup files in the form in which kernels write them."""

from pathlib import Path

import pytest

from cnnserve.process.memory_limit import budget, memory_limit

MIB = 2**20
GIB = 2**30


def limit(root: Path, membership: str) -> int | None:
    (root / "membership").write_text(membership)
    return memory_limit(root, root / "membership")


@pytest.mark.parametrize(("text", "expected"), [("max", None), (str(512 * MIB), 512 * MIB), ("nonsense", None)])
def test_cgroup_v2(tmp_path: Path, text: str, expected: int | None) -> None:
    (tmp_path / "memory.max").write_text(text + "\n")
    assert limit(tmp_path, "0::/\n") == expected


def test_the_tightest_parent_counts(tmp_path: Path) -> None:
    (tmp_path / "pod" / "box").mkdir(parents=True)
    (tmp_path / "pod" / "memory.max").write_text(f"{GIB}\n")
    (tmp_path / "pod" / "box" / "memory.max").write_text("max\n")
    assert limit(tmp_path, "0::/pod/box\n") == GIB


def test_cgroup_v1(tmp_path: Path) -> None:
    folder = tmp_path / "memory" / "docker"
    folder.mkdir(parents=True)
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert limit(tmp_path, "4:memory:/docker\n5:cpu:/other\n") is None
    (folder / "memory.limit_in_bytes").write_text(f"{GIB}\n")
    assert limit(tmp_path, "4:memory:/docker\n5:cpu:/other\n") == GIB


def test_without_a_limit_the_setting_holds_or_the_default() -> None:
    assert budget(0, None, 100 * MIB).mib == 1024
    assert budget(300, None, 100 * MIB).mib == 300


def test_a_share_of_what_is_free_under_the_limit() -> None:
    found = budget(0, 512 * MIB, 112 * MIB)
    assert found.mib == 200
    assert "512 MiB" in found.reason
    assert not found.warning


def test_a_setting_is_cut_to_what_is_free() -> None:
    assert budget(150, 512 * MIB, 112 * MIB).mib == 150
    cut = budget(1024, 512 * MIB, 112 * MIB)
    assert cut.mib == 200
    assert "max_pending_mib is 1024 and is cut to 200" in cut.warning


def test_a_machine_that_is_full_leaves_a_little() -> None:
    assert budget(0, 100 * MIB, 200 * MIB).mib == 16
