"""The limit of open files."""

import resource
import subprocess
import sys

import pytest

from cnnserve.process import open_files


@pytest.mark.parametrize(("limit", "most"), [(64, 16), (1024, 496), (2**20, 1000)])
def test_connections_leave_files_for_others(limit: int, most: int) -> None:
    assert open_files.connections(limit, 1000) == most


def test_the_limit_is_raised() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lower = min(soft, 256)
    program = (
        "import resource; from cnnserve.process import open_files\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({lower}, {hard}))\n"
        "print(open_files.raise_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == [str(hard)] * 3
