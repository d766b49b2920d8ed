"""Same in, same out: the file depends on the weights alone, not on who exports it, where and in which order."""

import getpass
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

import cnnserve_export
from support import HANG_S

EXPORT = """
import sys
from pathlib import Path
import torch
from cnnserve_export import checkpoints, convert
from cnnserve_export.architectures import ARCHITECTURES
from cnnserve_export.contract import contract
from support import HANG_S
torch.set_num_threads(int(sys.argv[2]))
for name in sys.argv[3:]:
    architecture = ARCHITECTURES[name]
    network = checkpoints.build(architecture, architecture.class_count)
    made = contract(architecture.preprocessing, "uint8", architecture.class_count)
    convert.to_onnx(network, made, Path(sys.argv[1], name + ".onnx"))
assert Path(convert.__file__).is_relative_to(Path(sys.argv[1])), convert.__file__
"""
NETWORKS = ("lenet5", "resnet18")


@pytest.fixture(scope="module")
def checkouts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two copies of the exporter at paths of different lengths, each beside the files that it exported."""
    folders = [tmp_path_factory.mktemp(name) for name in ("checkout", "another-checkout-elsewhere")]
    running = []
    for number, folder in enumerate(folders):
        shutil.copytree(Path(cnnserve_export.__file__).parent, folder / "cnnserve_export")
        (folder / "export.py").write_text(EXPORT)
        path = os.pathsep.join([str(folder), *sys.path])
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": str(number + 1), "PYTHONWARNINGS": "ignore"}
        order = NETWORKS if number == 0 else reversed(NETWORKS)
        command = [sys.executable, folder / "export.py", folder, str(number + 1), *order]
        running.append(subprocess.Popen(command, env=environment, cwd=folder, stderr=subprocess.PIPE, text=True))
    for process in running:
        _, err = process.communicate(timeout=HANG_S)
        assert process.returncode == 0, err
    return folders


@pytest.mark.parametrize("network", NETWORKS)
def test_two_checkouts_export_the_same_bytes(network: str, checkouts: list[Path]) -> None:
    first, second = ((folder / f"{network}.onnx").read_bytes() for folder in checkouts)
    assert len(first) > 200_000
    assert first == second


@pytest.mark.parametrize("network", NETWORKS)
def test_the_file_tells_nothing_of_its_maker(network: str, checkouts: list[Path]) -> None:
    model = onnx.load(checkouts[0] / f"{network}.onnx")
    for weight in model.graph.initializer:
        # Millions of bytes hold any short word by chance.
        weight.ClearField("raw_data")
    data = model.SerializeToString()
    words = [str(checkouts[0]), str(Path.home()), str(Path(sys.prefix)), "site-packages", "cnnserve_export", ".py"]
    words += ["stack_trace", "Traceback", 'File "', "forward", socket.gethostname(), f"/{getpass.getuser()}/"]
    assert [word for word in words if len(word) > 2 and word.encode() in data] == []
