"""Networks of timm, exported with their configs, return class by class what timm's own code and transforms do."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import timm_networks
from forking import forking
from torchvision_parity import TOLERANCE, compare

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module", name="timms")
def timms_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("timm")
    timm_networks.ask(folder)
    return folder


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with forking(tmp_path_factory.mktemp("forking")) as commands:
        yield commands


@pytest.mark.parametrize("name", timm_networks.CHANGES)
def test_a_network_of_timm_answers_what_timm_does(name: str, timms: Path, commands: Path, tmp_path: Path) -> None:
    command = [commands / "cnnserve", "export", f"timm_networks:{name}", "--max-batch-size", "3"]
    command += ["--weights", timms / f"{name}.pth", "--preprocessing", timms / f"{name}.json", "--repository", tmp_path]
    # Where Python finds `timm_networks`.
    done = subprocess.run(command, cwd=Path(timm_networks.__file__).parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path}/{name}/1\n"
    expected = np.load(timms / f"{name}.npy")
    found = compare(tmp_path / name / "1", expected)
    assert found.served.tolist() == found.expected.tolist()
    assert found.difference < TOLERANCE
    # Or the comparison would see little: the photographs differ, and no class is certain.
    assert np.ptp(expected, axis=0).max() > 100 * TOLERANCE
    assert expected.max() < 0.999
