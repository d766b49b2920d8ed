"""Packs: what is in them, the same bytes twice, and what is refused."""

import hashlib
import json
import os
import shutil
import tarfile
from pathlib import Path

import pytest

from cnnserve.errors import ModelLoadFailed
from cnnserve.sources import packing
from cnnserve.sources.errors import SourceError
from pulls import blob, layer, manifest, names, same
from support import REPOSITORY

VERSION = REPOSITORY / "lenet5" / "1"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model's folder of its own."""
    return shutil.copytree(REPOSITORY / "lenet5", tmp_path / "models" / "lenet5")


def test_a_pack_is_an_artifact_of_model_pack_whose_layers_are_the_files(made: Path) -> None:
    found = manifest(made / "layout")
    assert found["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert found["config"]["mediaType"] == "application/vnd.cncf.model.config.v1+json"
    paths = [one["annotations"]["org.cncf.model.filepath"] for one in found["layers"]]
    expected = [str(path.relative_to(REPOSITORY)) for path in sorted(REPOSITORY.rglob("*")) if path.is_file()]
    assert paths == sorted(expected)
    weights = layer(made / "layout", "lenet5/1/model.onnx")
    assert weights["mediaType"] == "application/vnd.cncf.model.weight.v1.raw"
    assert layer(made / "layout", "lenet5/1/manifest.json")["mediaType"].endswith("weight.config.v1.raw")
    assert blob(made / "layout", weights["digest"]).read_bytes() == (VERSION / "model.onnx").read_bytes()
    config = json.loads(blob(made / "layout", found["config"]["digest"]).read_bytes())
    assert config["descriptor"] == {"name": "lenet5", "version": "1"}
    assert config["config"]["paramSize"] == "61.7k"
    assert config["modelfs"]["diffIds"] == [one["digest"] for one in found["layers"]]


def test_every_blob_has_its_digest_as_its_name(made: Path) -> None:
    for name in ("layout", "modelcar"):
        for path in (made / name / "blobs" / "sha256").iterdir():
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name


def test_the_same_version_gives_the_same_bytes(made: Path, model: Path, tmp_path: Path) -> None:
    # Times, modes and the order in the folder differ.
    for path in (model / "1").iterdir():
        os.utime(path, (1, 1))
        path.chmod(0o600)
    again = packing.pack(model / "1", tmp_path / "again.tar")
    assert (tmp_path / "again.tar").read_bytes() == (made / "pack.tar").read_bytes()
    packing.pack(model / "1", tmp_path / "image", modelcar=True)
    same(made / "modelcar", tmp_path / "image")
    (top,) = json.loads((made / "layout" / "index.json").read_bytes())["manifests"]
    assert again.digest == top["digest"]
    assert again.files == 16


def test_a_modelcar_is_an_image_with_the_models_in_one_folder(made: Path) -> None:
    (top,) = json.loads((made / "modelcar" / "index.json").read_bytes())["manifests"]
    images = json.loads(blob(made / "modelcar", top["digest"]).read_bytes())["manifests"]
    assert [one["platform"]["architecture"] for one in images] == ["amd64", "arm64"]
    layers = [json.loads(blob(made / "modelcar", one["digest"]).read_bytes())["layers"] for one in images]
    assert layers[0] == layers[1]
    with tarfile.open(blob(made / "modelcar", layers[0][0]["digest"])) as tar:
        assert tar.getnames()[0] == "models/lenet5/1/golden-alpha.png"
        assert {member.mtime for member in tar} == {0}


def test_files_of_a_project_beside_the_versions_stay_out(model: Path, tmp_path: Path) -> None:
    (model / "training").mkdir()
    (model / "training" / "secret.env").write_text("KEY=1")
    (model / "notes.md").write_text("x")
    (model / "configs").mkdir()
    shutil.copyfile(model / "config.pbtxt", model / "configs" / "small.pbtxt")
    (model / "2").mkdir()
    packing.pack(model / "1", tmp_path / "out")
    layers = manifest(tmp_path / "out")["layers"]
    paths = [one["annotations"]["org.cncf.model.filepath"] for one in layers]
    assert [path for path in paths if not path.startswith("lenet5/1/")] == [
        "lenet5/config.pbtxt",
        "lenet5/configs/small.pbtxt",
        "lenet5/labels.txt",
    ]


def test_the_folder_of_a_mounted_version_is_packed_alone(model: Path, tmp_path: Path) -> None:
    (model / "1").rename(tmp_path / "mounted")
    made = packing.pack(tmp_path / "mounted", tmp_path / "out")
    assert (made.model, made.version, made.files) == ("lenet5", 1, 14)


def test_an_altered_version_is_not_packed(model: Path, tmp_path: Path) -> None:
    (model / "1" / "labels.txt").write_text("a\n")
    with pytest.raises(ModelLoadFailed, match=r"labels\.txt has 2 bytes, the manifest says 20"):
        packing.pack(model / "1", tmp_path / "out")
    assert names(tmp_path) == ["models"]


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("lenet5", "is the folder of a model, expected that of a version: .*lenet5/1"),
        ("nothing", "nothing is no folder; give MODEL/VERSION"),
        (".", "is no folder of a version with a manifest; give MODEL/VERSION"),
    ],
)
def test_what_is_no_version_is_not_packed(path: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=problem):
        packing.pack(REPOSITORY / path, tmp_path / "out")
    assert names(tmp_path) == []


def test_an_output_that_exists_stays(tmp_path: Path) -> None:
    (tmp_path / "out.tar").write_text("mine")
    with pytest.raises(SourceError, match=r"out\.tar exists; remove it, or choose another --output"):
        packing.pack(VERSION, tmp_path / "out.tar")
    assert (tmp_path / "out.tar").read_text() == "mine"


def test_an_output_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"missing/out\.tar cannot be written: No such file or directory; make its"):
        packing.pack(VERSION, tmp_path / "missing" / "out.tar")
