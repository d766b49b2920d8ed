"""`cnnserve copy` and `cnnserve upgrade`: what they publish, and what they refuse."""

import dataclasses
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cnnserve.errors import ModelLoadFailed
from cnnserve.repository import folders
from cnnserve.repository import manifest as manifests
from cnnserve.repository.manifest import Origin, TensorInfo
from cnnserve_export import copying
from cnnserve_export.cli import copy, upgrade
from cnnserve_export.errors import ExportError
from spoiling import rare_classes_exchanged
from support import REPOSITORY, as_schema_1, golden_rows, open_version, png, rewrite_manifest, tiny_onnx, write_version

SCHEMA_1 = Path(__file__).parents[1] / "trust" / "schema1" / "lenet5"


def manifest_of(folder: Path) -> manifests.Manifest:
    manifest = manifests.read(folder)
    assert manifest is not None
    return manifest


def origin_of(folder: Path) -> Origin:
    manifest, text = manifest_of(folder), (folder / "manifest.json").read_bytes()
    return Origin(manifest.model, manifest.version, hashlib.sha256(text).hexdigest())


def listed(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A model repository with versions 1 and 2 of `tiny`."""
    for version in ("1", "2"):
        write_version(tmp_path / "models" / "tiny" / version)
    return tmp_path / "models"


def test_the_trained_lenet5_has_the_files_of_its_schema_1_and_more_golden_images(tmp_path: Path) -> None:
    copying.copy(SCHEMA_1 / "1", tmp_path / "lenet5")
    assert listed(tmp_path / "lenet5") < listed(REPOSITORY / "lenet5")
    for name in listed(tmp_path / "lenet5") - {"1/manifest.json", "1/golden.bin"}:
        assert (tmp_path / "lenet5" / name).read_bytes() == (REPOSITORY / "lenet5" / name).read_bytes(), name
    first = golden_rows(REPOSITORY / "lenet5" / "1")[:1]
    np.testing.assert_array_equal(golden_rows(tmp_path / "lenet5" / "1"), golden_rows(SCHEMA_1 / "1"))
    np.testing.assert_allclose(golden_rows(SCHEMA_1 / "1"), first, atol=1e-6)


def test_an_upgrade_is_the_next_version(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(SCHEMA_1, tmp_path / "lenet5")
    assert upgrade([str(tmp_path / "lenet5")]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/lenet5/2\n"
    manifest = manifest_of(tmp_path / "lenet5" / "2")
    assert (manifest.model, manifest.version, manifest.schema) == ("lenet5", 2, 2)
    assert manifest.origin == origin_of(SCHEMA_1 / "1")
    for version, contract in ((1, 1), (2, 2)):
        info = open_version(folders.find(tmp_path, "lenet5"), version).info
        assert info.self_test is not None
        assert info.manifest is not None
        assert info.manifest.schema == contract
    assert upgrade([str(tmp_path / "lenet5")]) == 1
    assert "lenet5/2 has contract 2 already" in capsys.readouterr().err


def test_a_copy_has_the_files_and_its_own_name(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "tiny" / "2" / "notes.txt").write_text("not in the manifest")
    assert copy([str(root / "tiny"), str(root / "other" / "5")]) == 0
    assert capsys.readouterr().out == f"{root}/other/5\n"
    before, after = manifest_of(root / "tiny" / "2"), manifest_of(root / "other" / "5")
    assert after == dataclasses.replace(
        before, model="other", version=5, origin=origin_of(root / "tiny" / "2"), files=after.files
    )
    assert after.files == before.files
    assert listed(root / "other" / "5") == {*after.files, "manifest.json"}
    assert open_version(folders.find(root, "other"), 5).info.self_test is not None
    assert copying.copy(root / "other" / "5", root / "tiny") == root / "tiny" / "3"


def test_a_relative_path_stays_one(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root / "tiny")
    assert copy(["2", "../other"]) == 0
    assert copy(["../other", "."]) == 0
    as_schema_1(root / "tiny" / "3")
    assert upgrade(["."]) == 0
    assert capsys.readouterr().out.split() == ["../other/1", "3", "4"]


def test_a_copy_repairs_a_renamed_model(root: Path) -> None:
    (root / "tiny").rename(root.parent / "aside")
    with pytest.raises(ModelLoadFailed, match=r"is that of model tiny version 2.*cnnserve copy PATH TO"):
        copying.upgrade(as_schema_1(root.parent / "aside" / "2"))
    folder = copying.copy(root.parent / "aside" / "1", root / "renamed")
    assert manifest_of(folder).origin == Origin("tiny", 1, origin_of(root.parent / "aside" / "1").manifest_sha256)
    assert open_version(folders.find(root, "renamed"), 1).info.self_test is not None


def test_an_altered_file_is_not_copied(root: Path) -> None:
    (root / "tiny" / "2" / "labels.txt").write_text("dark\nleft\nblight\n")
    with pytest.raises(ModelLoadFailed, match=r"labels\.txt was altered"):
        copying.copy(root / "tiny" / "2", root / "other")
    assert [path.name for path in root.iterdir()] == ["tiny"]


@pytest.mark.parametrize(
    ("to", "said"),
    [
        ("tiny/2", "tiny/2 exists, and a published version never changes"),
        ("", "is a model repository; give .*/MODEL or .*/MODEL/VERSION"),
        ("7", "is a model repository; give .*/MODEL or .*/MODEL/VERSION"),
        ("a b", "'a b' is not a model name"),
        ("wide", r"version 1 of wide has the input 'image' UINT8 \[8, 8, 1\] and 4 classes, this version has"),
    ],
)
def test_where_no_copy_can_be(root: Path, to: str, said: str) -> None:
    write_version(root / "wide" / "1")
    (root / "wide" / "1" / "golden.bin").write_bytes(manifests.golden_bytes(np.full((1, 4), 0.25)))
    output = dataclasses.asdict(TensorInfo("probabilities", "FP32", (4,)))
    rewrite_manifest(root / "wide" / "1", class_count=4, output=output)
    before = listed(root)
    with pytest.raises(ExportError, match=said):
        copying.copy(root / "tiny" / "1", root / to)
    assert listed(root) == before


def test_what_is_no_version_is_refused(root: Path) -> None:
    (root / "plain" / "1").mkdir(parents=True)
    (root / "plain" / "1" / "model.onnx").write_bytes(tiny_onnx())
    for path in (root, root / "plain", root / "none"):
        with pytest.raises(ExportError, match=r"has no manifest\.json; give the folder of a version"):
            copying.copy(path, root / "other")


def test_an_upgrade_has_to_pass_the_self_test(root: Path) -> None:
    """Also with the tolerance of logarithms, which schema 1 does not have."""
    folder = root / "tiny" / "2"
    pixels = np.zeros((8, 8), np.uint8)
    pixels[:, :4] = 250
    shutil.rmtree(folder)
    write_version(folder, golden_image=png(pixels))
    rare_classes_exchanged(folder)
    rewrite_manifest(folder)
    as_schema_1(folder)
    before = listed(root)
    assert open_version(folders.find(root, "tiny"), 2).info.self_test is not None
    for command in (lambda: copying.upgrade(root / "tiny"), lambda: copying.copy(folder, root / "other")):
        with pytest.raises(ModelLoadFailed, match=r"self-test of contract 2, so nothing was published: .* logarithm"):
            command()
    assert listed(root) == before


def without_onnx_runtime(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs a command where neither torch nor onnx nor ONNX Runtime nor Pillow is installed."""
    program = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['torch', 'onnx', 'onnxruntime', 'PIL', 'argcomplete', 'uvloop']))\n"
        "from cnnserve.cli import main\n"
        "sys.exit(main())\n"
    )
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def test_a_copy_needs_the_base_install_only(root: Path) -> None:
    assert without_onnx_runtime("copy", root / "tiny" / "1", root / "other").returncode == 0
    as_schema_1(root / "tiny" / "2")
    before = listed(root)
    done = without_onnx_runtime("upgrade", root / "tiny")
    assert (done.returncode, listed(root)) == (1, before)
    assert 'pip install "cnnserve[cpu]"' in done.stderr
