"""The header of ONNX files, as the onnx package writes it, and with any other bytes."""

from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from cnnserve.repository import onnx_header
from cnnserve.repository.onnx_header import OnnxHeader
from support import REPOSITORY, tiny_onnx


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("header") / "model.onnx"


@given(st.integers(1, 2**62), st.dictionaries(st.text(max_size=40), st.integers(1, 2**62), max_size=4))
def test_what_the_onnx_package_wrote_is_read(path: Path, ir_version: int, opsets: dict[str, int]) -> None:
    model = onnx.load_from_string(tiny_onnx())
    model.ir_version = ir_version
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in opsets.items())
    path.write_bytes(model.SerializeToString())
    assert onnx_header.read(path) == OnnxHeader(ir_version, {name or "ai.onnx": n for name, n in opsets.items()})


def test_a_real_file() -> None:
    header = onnx_header.read(REPOSITORY / "lenet5" / "1" / "model.onnx")
    assert str(header) == "IR version 10 and opset 18 of ai.onnx"


@given(st.binary(max_size=60))
def test_any_bytes_are_a_header_or_none(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    header = onnx_header.read(path)
    assert header is None or header.ir_version


@given(st.integers(0, 10_000))
def test_a_file_cut_short_is_no_error(path: Path, size: int) -> None:
    path.write_bytes(tiny_onnx()[:size])
    onnx_header.read(path)


def test_no_file_has_no_header(tmp_path: Path) -> None:
    assert onnx_header.read(tmp_path) is None
    assert onnx_header.read(tmp_path / "none.onnx") is None
