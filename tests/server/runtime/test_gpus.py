"""What NVML tells, on machines without a GPU and with one."""

import subprocess
import sys

import pytest

from cnnserve.runtime import gpus
from support import HANG_S


def test_without_the_package_there_is_nothing_to_read() -> None:
    code = "import sys; sys.modules['pynvml'] = None\nfrom cnnserve.runtime import gpus\nassert gpus.readings() == []"
    assert subprocess.run([sys.executable, "-c", code], timeout=HANG_S, check=False).returncode == 0


def test_without_a_driver_there_is_nothing_to_read() -> None:
    pynvml = pytest.importorskip("pynvml")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        assert gpus.readings() == []
    else:
        pytest.skip("this machine has a driver")


@pytest.mark.gpu
@pytest.mark.skipif(gpus.readings() == [], reason="needs an NVIDIA GPU and nvidia-ml-py")
def test_a_gpu_tells_its_memory_and_use() -> None:
    first, *_ = gpus.readings()
    assert first.uuid.startswith(("GPU-", "MIG-"))
    assert 0 < first.memory_used_bytes <= first.memory_total_bytes
    assert first.utilization is None or 0 <= first.utilization <= 1
