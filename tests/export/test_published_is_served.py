"""What `export` and `import` publish, the server loads: networks that standardise each image, and sigmoids."""

from pathlib import Path

import numpy as np
import pytest
import torch

import published_networks
from cnnserve.images.preprocessing import Preprocessor
from cnnserve.repository import folders
from cnnserve.repository import manifest as manifests
from cnnserve_export import contract, golden, golden_choice
from cnnserve_export.cli import export, import_onnx
from foreign_networks import onnx_file
from support import golden_rows, open_tested

FLAGS = published_networks.FLAGS.split()


def published(tmp_path: Path, name: str, *flags: str) -> manifests.Manifest:
    """Exports one of the networks; the server loads it."""
    command = [f"published_networks:{name}", *FLAGS, *flags, "--repository", str(tmp_path), "--name", "m"]
    assert export(command) == 0
    return loaded(tmp_path)


def loaded(tmp_path: Path) -> manifests.Manifest:
    info = open_tested(folders.find(tmp_path, "m"), 1).info
    assert info.manifest is not None
    return info.manifest


def values(name: str, manifest: manifests.Manifest) -> np.ndarray:
    """Returns what the network itself returns for the golden images."""
    made = contract.contract(manifest.preprocessing, "float32", manifest.class_count)
    preprocessor = Preprocessor(made.preprocessing, made.input)
    rows = np.stack([preprocessor.encoded(image) for image in golden_choice.photographs().values()])
    with torch.inference_mode():
        found: np.ndarray = getattr(published_networks, name)().eval()(torch.from_numpy(rows)).numpy()
    return found


@pytest.mark.parametrize("form", ["uint8", "float32"])
def test_a_network_may_view_its_input(tmp_path: Path, form: str) -> None:
    assert published(tmp_path, "view", "--input", form).activation == "softmax"


@pytest.mark.parametrize("name", ["deviation", "spread", "norm"])
def test_a_network_may_standardise_each_image(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    published(tmp_path, name)
    assert "WARNING: an image of one colour gets no answer" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["deviation", "spread", "norm"])
def test_an_imported_file_may_standardise_each_image(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also if the only golden image is so dark that half of its values are zeros."""
    standard = "range" if name == "spread" else name
    network = published_networks.Network(standard).eval()
    path = onnx_file(tmp_path / "m.onnx", network, example=torch.rand(2, 3, 16, 16))
    dark = np.zeros((16, 16, 3), np.uint8)
    dark[4:9] = 1
    (tmp_path / "dark.png").write_bytes(golden.encode_png(dark))
    command = ["--mean", "0,0,0", "--std", "1,1,1", "--golden", str(tmp_path / "dark.png"), "--max-batch-size", "4"]
    assert import_onnx([str(path), *command, "--repository", str(tmp_path)]) == 0
    loaded(tmp_path)
    assert "WARNING: an image of one colour gets no answer" in capsys.readouterr().err


def test_independent_sigmoids_are_exported_as_they_are(tmp_path: Path) -> None:
    manifest = published(tmp_path, "sigmoids")
    assert (manifest.activation, manifest.activation_by, manifest.class_count) == ("sigmoid", "network", 5)
    np.testing.assert_allclose(golden_rows(tmp_path / "m" / "1"), values("sigmoids", manifest), atol=1e-6)


def test_a_sigmoid_is_added_to_logits_on_demand(tmp_path: Path) -> None:
    manifest = published(tmp_path, "view", "--activation", "sigmoid")
    assert (manifest.activation, manifest.activation_by) == ("sigmoid", "export")
    expected = 1 / (1 + np.exp(-values("view", manifest)))
    np.testing.assert_allclose(golden_rows(tmp_path / "m" / "1"), expected, atol=1e-6)


@pytest.mark.parametrize(("name", "flags"), [("sigmoid", ""), ("flat_sigmoid", ""), ("logit", "--activation sigmoid")])
def test_a_single_value_is_exported_as_two_classes(tmp_path: Path, name: str, flags: str) -> None:
    (tmp_path / "names.txt").write_text("good\nbad\n")
    manifest = published(tmp_path, name, *flags.split(), "--labels", str(tmp_path / "names.txt"))
    assert (manifest.activation, manifest.activation_by, manifest.class_count) == ("softmax", "export", 2)
    value = values(name, manifest).ravel()
    p = 1 / (1 + np.exp(-value)) if name == "logit" else value
    np.testing.assert_allclose(golden_rows(tmp_path / "m" / "1"), np.stack([1 - p, p], axis=1), atol=1e-6)


def test_lower_precision_of_sigmoids(tmp_path: Path) -> None:
    manifest = published(tmp_path, "sigmoids", "--precision", "fp16")
    assert (manifest.activation, manifest.onnx.precision) == ("sigmoid", "fp16")
