"""A config.pbtxt names files of its own model only: nothing outside the model's folder is read, or sent to a client."""

from pathlib import Path

import pytest

from cnnserve.errors import ModelLoadFailed
from cnnserve.model.loader import OpenVersion
from cnnserve.repository import folders
from support import CLASSES, open_version, tiny_onnx


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Model `m`, which its config.pbtxt may describe, and a file that is none of its own."""
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "1" / "model.onnx").write_bytes(tiny_onnx())
    (tmp_path / "secret").mkdir()
    # As many lines as the model has classes: nothing else would refuse them.
    (tmp_path / "secret" / "keys.txt").write_text("one\ntwo\nthree\n")
    return tmp_path


def open_labelled(root: Path, label_filename: str, model: str = "m") -> OpenVersion:
    output = f'output {{ name: "probabilities" data_type: TYPE_FP32 dims: 3 label_filename: "{label_filename}" }}'
    (root / model / "config.pbtxt").write_text(output)
    return open_version(folders.find(root, model), 1)


@pytest.mark.parametrize(
    "label_filename", ["../secret/keys.txt", "1/../../secret/keys.txt", "link.txt", "linked/keys.txt"]
)
def test_a_label_file_outside_the_models_folder_is_refused(root: Path, label_filename: str) -> None:
    (root / "m" / "link.txt").symlink_to(root / "secret" / "keys.txt")
    (root / "m" / "linked").symlink_to(root / "secret", target_is_directory=True)
    with pytest.raises(ModelLoadFailed, match="label_filename"):
        open_labelled(root, label_filename)


def test_an_absolute_path_is_refused(root: Path) -> None:
    with pytest.raises(ModelLoadFailed, match="label_filename"):
        open_labelled(root, str(root / "secret" / "keys.txt"))


def test_a_folder_whose_name_begins_alike_is_another_one(root: Path) -> None:
    (root / "m-other").mkdir()
    (root / "m-other" / "keys.txt").write_text("one\ntwo\nthree\n")
    with pytest.raises(ModelLoadFailed, match="label_filename"):
        open_labelled(root, "../m-other/keys.txt")


@pytest.mark.parametrize("label_filename", ["names.txt", "1/names.txt", "1/../names.txt", "same.txt"])
def test_a_label_file_within_it_is_read(root: Path, label_filename: str) -> None:
    for folder in (root / "m", root / "m" / "1"):
        (folder / "names.txt").write_text("\n".join(CLASSES) + "\n")
    (root / "m" / "same.txt").symlink_to("names.txt")
    assert open_labelled(root, label_filename).info.labels == CLASSES


def test_a_models_folder_may_itself_be_a_link(root: Path) -> None:
    (root / "m" / "names.txt").write_text("\n".join(CLASSES) + "\n")
    (root / "n").symlink_to(root / "m", target_is_directory=True)
    assert open_labelled(root, "names.txt", "n").info.labels == CLASSES


@pytest.mark.parametrize("name", ["../../secret/model.onnx", "../model.onnx", "..", ".hidden.onnx", "1/model.onnx"])
def test_so_is_the_models_own_file(root: Path, name: str) -> None:
    for place in ("secret/model.onnx", "m/model.onnx", "m/1/.hidden.onnx"):
        (root / place).write_bytes(tiny_onnx())
    (root / "m" / "config.pbtxt").write_text(f'default_model_filename: "{name}"')
    with pytest.raises(ModelLoadFailed, match="default_model_filename"):
        open_version(folders.find(root, "m"), 1)
