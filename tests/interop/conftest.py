"""One server for the clients of other projects."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import REPOSITORY, RunningServer, picture, serving, write_version

PREFIX = f"cnnserve-interop-{os.getpid()}"


@pytest.fixture(scope="session")
def interop_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server of models `tiny` and `lenet5`, with shared memory for keys of `PREFIX` and of perf_analyzer."""
    root = tmp_path_factory.mktemp("interop")
    write_version(root / "tiny" / "1")
    (root / "lenet5").symlink_to(REPOSITORY / "lenet5", target_is_directory=True)
    flags = ["--model-control-mode", "explicit", "--load-model", "*", "--allow-model-control"]
    for prefix in (PREFIX, "image", "pixels", "probabilities"):
        flags += ["--shared-memory-prefix", prefix]
    with serving(tmp_path_factory.mktemp("log") / "log", root, *flags) as server:
        yield server
        assert "Traceback" not in server.log


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an image of each class of the tiny model."""
    folder = tmp_path_factory.mktemp("pictures")
    for kind in ("dark", "left", "bright"):
        (folder / f"{kind}.png").write_bytes(picture(kind))
    return folder
