"""Networks of timm, exported with their configs, return class by class what timm's own code and transforms do."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import timm_networks
from torchvision_parity import TOLERANCE, compare

pytestmark = pytest.mark.timeout(300)

TESTS = Path(timm_networks.__file__).parent


@pytest.fixture(scope="module", name="timms")
def timms_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("timm")
    timm_networks.ask(folder)
    return folder


@pytest.mark.parametrize("name", timm_networks.CHANGES)
def test_a_network_of_timm_answers_what_timm_does(name: str, timms: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "cnnserve", "export", f"timm_networks:{name}"]
    command += ["--weights", str(timms / f"{name}.pth"), "--preprocessing", str(timms / f"{name}.json")]
    command += ["--repository", str(tmp_path), "--max-batch-size", "3"]
    path = os.pathsep.join(filter(None, (str(TESTS), os.getenv("PYTHONPATH"))))
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path}/{name}/1\n"
    expected = np.load(timms / f"{name}.npy")
    found = compare(tmp_path / name / "1", expected)
    assert found.served.tolist() == found.expected.tolist()
    assert found.difference < TOLERANCE
    # Or the comparison would see little: the photographs differ, and no class is certain.
    assert np.ptp(expected, axis=0).max() > 100 * TOLERANCE
    assert expected.max() < 0.999
