"""Files of other kinds in place of a model are named; text files may begin with a byte-order mark."""

import codecs
from pathlib import Path

import pytest

from cnnserve.errors import ModelNotReady
from cnnserve.registry.registry import Registry
from cnnserve.repository.other_files import named
from support import rewrite_manifest, tiny_onnx, write_version

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%064d\nsize 46830571\n" % 0
PAGES = (b"<!DOCTYPE html><html>sign in</html>", b"\xef\xbb\xbf \n<HTML lang=en>")


@pytest.mark.parametrize("data", [b"\n", tiny_onnx(), b"PK\x03\x04", b"version 1", b"<htm", b"htmlpage"])
def test_other_bytes_are_not_named(data: bytes) -> None:
    assert named(data) == ""


@pytest.mark.parametrize("verified", [True, False])
@pytest.mark.parametrize(
    ("data", "said"),
    [
        (POINTER, "is a Git LFS pointer"),
        (PAGES[0], "is an HTML page"),
        (PAGES[1], "is an HTML page"),
        (b"", r"is empty \(0 bytes\)"),
    ],
)
async def test_a_model_of_another_kind_is_named(
    tmp_path: Path, registry: Registry, data: bytes, said: str, verified: bool
) -> None:
    folder = write_version(tmp_path / "m" / "1")
    (folder / "model.onnx").write_bytes(data)
    if not verified:
        (folder / "manifest.json").unlink()
    await registry.load_all()
    with pytest.raises(ModelNotReady, match=f"UNAVAILABLE: model.onnx {said}"):
        registry.get("m")


async def test_a_model_that_is_cut_off_is_called_so(tmp_path: Path, registry: Registry) -> None:
    folder = write_version(tmp_path / "m" / "1")
    (folder / "manifest.json").unlink()
    whole = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(whole[:-100])
    await registry.load_all()
    said = rf"or not complete \(not protobuf: .* byte {len(whole) - 100}\); copy it again"
    with pytest.raises(ModelNotReady, match=said):
        registry.get("m")


async def test_every_text_file_may_begin_with_a_byte_order_mark(tmp_path: Path, registry: Registry) -> None:
    folder = write_version(tmp_path / "m" / "1")
    (tmp_path / "m" / "config.pbtxt").write_text("max_batch_size: 4")
    (tmp_path / "m" / "version_labels.json").write_text('{"stable": 1}')
    for path in (folder / "labels.txt", tmp_path / "m" / "config.pbtxt", tmp_path / "m" / "version_labels.json"):
        path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    rewrite_manifest(folder)
    manifest = folder / "manifest.json"
    manifest.write_bytes(codecs.BOM_UTF8 + manifest.read_bytes())
    await registry.load_all()
    info = registry.get("m", "stable").info
    assert info.labels[0] == "dark"
    assert info.settings.max_batch_size == 4
