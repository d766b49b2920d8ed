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


def varint(value: int) -> bytes:
    parts = []
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def block(field: int, data: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(data)) + data


def read_bytes(path: Path, *fields: bytes) -> OnnxHeader | None:
    path.write_bytes(b"".join(fields))
    return onnx_header.read(path)


def opset(version: int | None, domain: bytes | None = None) -> bytes:
    entry = (b"" if domain is None else block(1, domain)) + (b"" if version is None else number(2, version))
    return block(8, entry)


def test_fields_of_every_kind_are_passed_over(path: Path) -> None:
    others = [
        varint(20 << 3 | 1) + b"\x08\x0a" * 4,
        varint(21 << 3 | 5) + b"\x08\x0a" * 2,
        number(22, 2**63),
        block(7, opset(99) * 50),
        # A field of the same number and of another kind is not what it should be.
        block(1, b"\x08\x63"),
        number(8, 5),
    ]
    for other in others:
        assert read_bytes(path, other, number(1, 7), other, opset(18), other) == OnnxHeader(7, {"ai.onnx": 18})


def test_an_entry_that_lacks_its_domain_or_version(path: Path) -> None:
    assert read_bytes(path, number(1, 7), opset(18, b"")) == OnnxHeader(7, {"ai.onnx": 18})
    assert read_bytes(path, number(1, 7), opset(None, b"com.example")) == OnnxHeader(7, {"com.example": 0})
    assert read_bytes(path, number(1, 7), opset(None)) == OnnxHeader(7, {"ai.onnx": 0})
    # The version as bytes, the domain as a number.
    assert read_bytes(path, number(1, 7), block(8, block(2, b"x"))) == OnnxHeader(7, {"ai.onnx": 0})
    assert read_bytes(path, number(1, 7), block(8, number(1, 3) + number(2, 18))) == OnnxHeader(7, {})


def test_without_an_ir_version_it_is_no_header(path: Path) -> None:
    assert read_bytes(path, opset(18)) is None
    assert read_bytes(path, number(1, 0), opset(18)) is None
    assert read_bytes(path) is None


@pytest.mark.parametrize("length", [4000, 4096 - 7])
def test_an_entry_of_up_to_4096_bytes_is_read(path: Path, length: int) -> None:
    domain = b"d" * (length - 5)
    assert read_bytes(path, number(1, 7), opset(18, domain)) == OnnxHeader(7, {domain.decode(): 18})


def test_the_limit_of_an_entry(path: Path) -> None:
    for domain_bytes in range(4080, 4100):
        entry = opset(18, b"d" * domain_bytes)
        header = read_bytes(path, number(1, 7), entry, opset(17))
        assert header is not None
        # Its tag takes one byte and its length two.
        assert (len(header.opsets) == 2) is (len(entry) - 3 <= 4096)


@pytest.mark.parametrize("kind", [3, 4, 6, 7])
def test_a_wire_type_that_nobody_uses_is_no_protobuf(path: Path, kind: int) -> None:
    assert read_bytes(path, number(1, 7), varint(9 << 3 | kind), opset(18)) is None


def test_a_number_has_at_most_ten_bytes(path: Path) -> None:
    assert read_bytes(path, number(1, 7), varint(9 << 3) + b"\x80" * 9 + b"\x01") == OnnxHeader(7, {})
    assert read_bytes(path, number(1, 7), varint(9 << 3) + b"\x80" * 10 + b"\x01") is None


def test_the_end_within_a_field(path: Path) -> None:
    assert read_bytes(path, number(1, 7), varint(9 << 3)) is None
    assert read_bytes(path, number(1, 7), varint(9 << 3 | 2)) is None


def test_headers_as_text() -> None:
    assert str(OnnxHeader(7, {})) == "IR version 7"
    both = OnnxHeader(7, {"ai.onnx": 18, "com.example": 1})
    assert str(both) == "IR version 7 and opset 18 of ai.onnx, opset 1 of com.example"
