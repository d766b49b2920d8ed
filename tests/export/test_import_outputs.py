"""What an imported file returns: logits, probabilities, one sigmoid, a sigmoid for each class, float16."""

import dataclasses
import warnings
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from torch import Tensor, nn

import foreign_networks
from cnnserve.images.preprocessing import Preprocessor
from cnnserve.model.classification import softmax
from cnnserve.repository import manifest as manifests
from cnnserve_client import Client
from cnnserve_export import activation, golden, importing
from cnnserve_export.errors import ExportError
from cnnserve_export.outputs import Output
from cnnserve_export.preparation import Given
from cnnserve_export.progress import Progress
from foreign_networks import onnx_file
from support import serving

HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
GOLDEN = golden.encode_png(golden.picture(3, 40, 30))

Importer = Callable[..., manifests.Manifest]


@pytest.fixture(name="imported")
def imported_fixture(tmp_path: Path) -> Importer:
    """Imports a file into `tmp_path`/models as `m`; returns the manifest."""

    def run(path: Path, **changes: Any) -> manifests.Manifest:
        fields: dict[str, Any] = {"given": Given(**HALF), "max_batch_size": 4, "name": "m", **changes}
        job = importing.Import(file=path, golden_images=golden.single(GOLDEN), repository=tmp_path / "models", **fields)
        manifest = manifests.read(importing.run(job, Progress(StringIO())))
        assert manifest is not None
        return manifest

    return run


def row(manifest: manifests.Manifest) -> np.ndarray:
    return Preprocessor(manifest.preprocessing, manifest.input).encoded(GOLDEN)[None]


def probabilities(manifest: manifests.Manifest, tmp_path: Path) -> np.ndarray:
    folder = tmp_path / "models/m" / str(manifest.version)
    return manifests.golden_probabilities(manifest, lambda name: (folder / name).read_bytes())[0]


def answer(path: Path, values: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    made: np.ndarray = session.run(None, {session.get_inputs()[0].name: values})[0]
    return made


class Single(nn.Module):
    """One value for an image: (N, 1), or (N) with `flat`."""

    def __init__(self, *, flat: bool = False, sigmoid: bool = True) -> None:
        super().__init__()
        self.inner = foreign_networks.network("densenet")
        self.flat, self.sigmoid = flat, sigmoid

    def forward(self, x: Tensor) -> Tensor:
        made = self.inner(x)[:, :1] / 8
        made = made.sigmoid() if self.sigmoid else made
        return made[:, 0] if self.flat else made


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("asked", ["auto", "sigmoid"])
def test_a_single_sigmoid_becomes_two_classes(asked: Any, flat: bool, imported: Importer, tmp_path: Path) -> None:
    network = Single(flat=flat, sigmoid=asked == "auto").eval()
    path = onnx_file(tmp_path / "theirs.onnx", network)
    manifest = imported(path, activation=asked)
    assert (manifest.activation, manifest.activation_by, manifest.class_count) == ("softmax", "export", 2)
    value = answer(path, row(manifest)).ravel()[0]
    p = value if asked == "auto" else 1 / (1 + np.exp(-value))
    np.testing.assert_allclose(probabilities(manifest, tmp_path), [1 - p, p], atol=1e-6)
    assert 0.01 < p < 0.99


@pytest.mark.parametrize("asked", ["auto", "sigmoid"])
def test_independent_sigmoids_stay_as_they_are(asked: Any, imported: Importer, tmp_path: Path) -> None:
    inner = foreign_networks.network("densenet")
    path = onnx_file(tmp_path / "theirs.onnx", nn.Sequential(inner, nn.Sigmoid()) if asked == "auto" else inner)
    (tmp_path / "names.txt").write_text("ant\nbee\ncat\ndog\neel\n")
    manifest = imported(path, activation=asked, labels=tmp_path / "names.txt")
    assert (manifest.activation, manifest.class_count) == ("sigmoid", 5)
    assert manifest.activation_by == ("network" if asked == "auto" else "export")
    values = answer(path, row(manifest))[0]
    expected = values if asked == "auto" else 1 / (1 + np.exp(-values))
    np.testing.assert_allclose(probabilities(manifest, tmp_path), expected, atol=1e-6)
    assert expected.sum() > 1.01
    with serving(tmp_path / "server.log", tmp_path / "models") as server, Client(server.address) as client:
        [result] = client.classify(GOLDEN, model="m", top_k=5).results
    best = np.argsort(-expected)
    assert [item.index for item in result.classes] == list(best)
    assert [item.probability for item in result.classes] == pytest.approx(expected[best], abs=1e-4)


def test_a_log_softmax_becomes_its_probabilities(imported: Importer, tmp_path: Path) -> None:
    inner = foreign_networks.network("densenet")
    path = onnx_file(tmp_path / "theirs.onnx", nn.Sequential(inner, nn.LogSoftmax(dim=1)))
    manifest = imported(path)
    expected = np.exp(answer(path, row(manifest))[0])
    np.testing.assert_allclose(probabilities(manifest, tmp_path), expected, atol=1e-6)


@pytest.mark.parametrize("keep_io", [True, False])
def test_a_file_of_onnxruntimes_own_fp16_converter(keep_io: bool, imported: Importer, tmp_path: Path) -> None:
    from onnxruntime.transformers.float16 import convert_float_to_float16  # noqa: PLC0415

    path = onnx_file(tmp_path / "theirs.onnx", foreign_networks.network("mobilenet"))
    expected = softmax(answer(path, row(imported(path)))[0])
    with warnings.catch_warnings():
        # Of weights that float16 rounds.
        warnings.simplefilter("ignore")
        onnx.save(convert_float_to_float16(onnx.load(path), keep_io_types=keep_io), path)
    manifest = imported(path)
    assert (manifest.version, manifest.onnx.precision, manifest.input.datatype) == (2, "fp16", "FP32")
    assert manifest.parity.tolerance == 1e-2
    np.testing.assert_allclose(probabilities(manifest, tmp_path), expected, atol=2e-2)


def test_a_half_export(imported: Importer, tmp_path: Path) -> None:
    network = foreign_networks.network("densenet").half()
    example = torch.zeros(2, 3, foreign_networks.SIDE, foreign_networks.SIDE, dtype=torch.float16)
    path = onnx_file(tmp_path / "theirs.onnx", network, example=example)
    assert onnx.load(path).graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT16
    manifest = imported(path)
    expected = answer(path, row(manifest).astype(np.float16))[0].astype(np.float32)
    np.testing.assert_allclose(probabilities(manifest, tmp_path), softmax(expected), atol=1e-2)
    session = onnxruntime.InferenceSession(tmp_path / "models/m/1/model.onnx", providers=["CPUExecutionProvider"])
    assert [value.type for value in (*session.get_inputs(), *session.get_outputs())] == ["tensor(float)"] * 2


# The decision alone


LOGITS = np.array([[2.0, -3.0]], np.float32)
SHARES = np.array([[0.25, 0.75]], np.float32)


@pytest.mark.parametrize(
    ("values", "ending", "asked", "message"),
    [
        (SHARES, "sigmoid", "sigmoid", "ends in a sigmoid, which a sigmoid would flatten"),
        (SHARES, "softmax", "sigmoid", "ends in a softmax, which a sigmoid would flatten"),
        (SHARES, "unknown", "softmax", "which a second softmax would flatten"),
        (SHARES[:, :1], "unknown", "auto", "one value for an image .* is a logit, pass --activation sigmoid"),
        (SHARES[:, :1], "softmax", "auto", "one value for an image"),
        (SHARES / 3, "unknown", "auto", "do not sum to 1"),
        (LOGITS * np.nan, "sigmoid", "auto", "NaN or infinite"),
    ],
)
def test_contradictions(values: np.ndarray, ending: Any, asked: Any, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        activation.decide(values, ending, asked)


def test_a_sigmoid_of_large_logits_is_finite() -> None:
    values = np.array([[1000.0, -1000.0, 0.0]], np.float32)
    made = activation.decide(values, "unknown", "sigmoid")
    assert made == Output("sigmoid", "sigmoid")
    np.testing.assert_allclose(activation.probabilities(values, made), [[1, 0, 0.5]])
    assert dataclasses.replace(made, two_classes=True).described().startswith("one logit; a sigmoid is added")
