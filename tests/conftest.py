"""Fixtures that several packages' tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support import RunningServer, serving, tiny_onnx, write_version

# numpy and grpc start threads of their own; nothing of a test's may stay behind them.


@pytest.fixture(scope="session")
def tiny_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models: `tiny` (good), `altered` (a file changed after export), `plain` (no manifest), `empty` (no version)."""
    root = tmp_path_factory.mktemp("repository")
    write_version(root / "tiny" / "1")
    altered = write_version(root / "altered" / "1")
    (altered / "labels.txt").write_text("dark\nleft\nblight\n")
    plain = root / "plain" / "1"
    plain.mkdir(parents=True)
    (plain / "model.onnx").write_bytes(tiny_onnx())
    (root / "empty").mkdir()
    return root


@pytest.fixture(scope="session")
def tiny_server(tiny_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server of `tiny_repository`."""
    with serving(tmp_path_factory.mktemp("log") / "server.log", tiny_repository) as server:
        yield server
