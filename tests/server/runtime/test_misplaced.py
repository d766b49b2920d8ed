"""A model that was asked for on a GPU and whose nodes ONNX Runtime puts on the CPU: it does not load in silence."""

from pathlib import Path

import pytest

from cnnserve.errors import ModelLoadFailed
from cnnserve.model.loader import OpenVersion
from cnnserve.model_config.providers import CPU, CUDA, Provider
from cnnserve.repository import folders
from cnnserve.runtime import session
from cnnserve.runtime.session import Session, SessionOptions
from support import open_version, tiny_onnx, write_version

FALLBACK = 'parameters { key: "cnnserve.allow_cpu_fallback" value { string_value: "true" } }'


@pytest.fixture(autouse=True)
def nothing_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime starts, and gives every node to its CPU provider, as it does where CUDA has no kernel for it."""
    monkeypatch.setattr(Provider, "chain", [(CPU, {})])
    monkeypatch.setattr(session, "require", lambda _: None)
    monkeypatch.setitem(session._BUFFER_DEVICES, "cuda", "cpu")


def open_on_gpu(root: Path, config: str = "") -> OpenVersion:
    write_version(root / "m" / "1")
    (root / "m" / "config.pbtxt").write_text("instance_group { kind: KIND_GPU }" + config)
    return open_version(folders.find(root, "m"), 1)


def test_a_misplaced_node_fails_the_load(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadFailed, match=rf"\d+ of \d+ nodes run on {CPU} instead of {CUDA}.*allow_cpu_fallback"):
        open_on_gpu(tmp_path)


def test_where_the_config_permits_it_the_placement_is_told(tmp_path: Path) -> None:
    assert set(open_on_gpu(tmp_path, FALLBACK).info.placement) == {CPU}


@pytest.mark.parametrize("kind", ["cuda", "tensorrt"])
def test_a_session_judges_its_own_nodes(tmp_path: Path, kind: str) -> None:
    (tmp_path / "model.onnx").write_bytes(tiny_onnx())
    provider = Provider(kind)  # type: ignore[arg-type]
    with pytest.raises(ModelLoadFailed, match="nodes run"):
        Session(tmp_path / "model.onnx", SessionOptions(provider=provider))
    assert Session(tmp_path / "model.onnx", SessionOptions(provider=provider, allow_cpu_nodes=True)).placement
    assert Session(tmp_path / "model.onnx").placement
