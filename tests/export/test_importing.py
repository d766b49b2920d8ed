import hashlib
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import foreign_networks
from cnnserve.images.preprocessing import Preprocessor
from cnnserve.model.classification import softmax
from cnnserve.model_config import pbtxt
from cnnserve.repository import manifest as manifests
from cnnserve_export import golden, importing
from cnnserve_export.cli import import_onnx
from cnnserve_export.errors import ExportError
from cnnserve_export.preparation import Given
from cnnserve_export.progress import Progress
from foreign_networks import onnx_file
from support import golden_rows, tiny_onnx

HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
GOLDEN = golden.encode_png(golden.picture(3, 40, 30))

Importer = Callable[..., manifests.Manifest]


@pytest.fixture(name="imported")
def imported_fixture(tmp_path: Path) -> Importer:
    """Imports a file to `tmp_path`/models as model `m` and returns the manifest."""

    def run(path: Path, given: Given | None = None, **changes: Any) -> manifests.Manifest:
        fields: dict[str, Any] = {"max_batch_size": 4, "golden_images": golden.single(GOLDEN), "name": "m", **changes}
        job = importing.Import(file=path, given=given or Given(**HALF), repository=tmp_path / "models", **fields)
        folder = importing.run(job, Progress(StringIO()))
        manifest = manifests.read(folder)
        assert manifest is not None
        manifests.verify_files(manifest, folder)
        assert not [path for path in folder.iterdir() if path.name not in (*manifest.files, "manifest.json")]
        return manifest

    return run


def served(tmp_path: Path) -> Path:
    return tmp_path / "models" / "m" / "1" / "model.onnx"


def by_hand(path: Path, manifest: manifests.Manifest, batch: int = 1) -> np.ndarray[Any, Any]:
    """Returns the output of plain ONNX Runtime for the golden image, with the original file."""
    row = Preprocessor(manifest.preprocessing, manifest.input).encoded(GOLDEN)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    answer: np.ndarray[Any, Any] = session.run(None, {session.get_inputs()[0].name: row[None].repeat(batch, 0)})[0]
    return answer[0]


@pytest.mark.parametrize("dynamic", [True, False], ids=["dynamic", "fixed"])
@pytest.mark.parametrize("legacy", [True, False], ids=["legacy", "dynamo"])
@pytest.mark.parametrize("kind", ["mobilenet", "densenet", "efficientnet"])
def test_foreign_networks(kind: str, legacy: bool, dynamic: bool, imported: Importer, tmp_path: Path) -> None:
    network = foreign_networks.network(kind)
    path = onnx_file(tmp_path / "theirs.onnx", network, legacy=legacy, dynamic=dynamic)
    manifest = imported(path)
    assert list(manifest.parity.batches) == ["1", "2", "3", "4"]
    assert max(manifest.parity.batches.values()) < 1e-5
    assert (manifest.input.name, manifest.input.shape, manifest.max_batch_size) == ("pixels", (3, 16, 16), 4)
    np.testing.assert_allclose(golden_rows(served(tmp_path).parent)[0], softmax(by_hand(path, manifest)), atol=1e-6)
    row = Preprocessor(manifest.preprocessing, manifest.input).encoded(GOLDEN)
    with torch.inference_mode():
        expected = network(torch.from_numpy(row)[None]).softmax(dim=1)[0].numpy()
    np.testing.assert_allclose(golden_rows(served(tmp_path).parent)[0], expected, atol=1e-5)
    theirs, ours = onnx.load(path), onnx.load(served(tmp_path))
    assert (ours.ir_version, ours.opset_import) == (theirs.ir_version, theirs.opset_import)
    assert (manifest.onnx.ir_version, manifest.onnx.opset) == (theirs.ir_version, theirs.opset_import[0].version)
    assert (manifest.activation, manifest.activation_by, manifest.parity.reference) == (
        "softmax",
        "export",
        "imported file",
    )
    assert manifest.weights["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_that_needs_no_change_is_published_as_it_is(imported: Importer, tmp_path: Path) -> None:
    network = nn.Sequential(foreign_networks.network("mobilenet"), nn.Softmax(dim=1))
    path = onnx_file(tmp_path / "theirs.onnx", network)
    manifest = imported(path)
    assert served(tmp_path).read_bytes() == path.read_bytes()
    assert (manifest.activation, manifest.activation_by, manifest.output.name) == ("softmax", "network", "scores")
    with pytest.raises(ExportError, match="which a second softmax would flatten"):
        imported(path, activation="softmax", name="again")


class Expanded(nn.Module):
    """Adds a token to each image. The exporter fixes the number of tokens to the batch size of its example."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = foreign_networks.network("densenet")
        self.register_buffer("token", torch.zeros(1, 1, 5))

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.cat([self.get_buffer("token").expand(x.shape[0], -1, -1), self.inner(x)[:, None]], dim=1)
        return tokens.sum(dim=1)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_batch_that_cannot_be_freed_stays_fixed(batch: int, imported: Importer, tmp_path: Path) -> None:
    example = torch.zeros(batch, 3, 16, 16)
    path = onnx_file(tmp_path / "theirs.onnx", Expanded().eval(), legacy=False, dynamic=False, example=example)
    manifest = imported(path)
    assert (manifest.max_batch_size, list(manifest.parity.batches)) == (batch, [str(batch)])
    np.testing.assert_allclose(
        golden_rows(served(tmp_path).parent)[0], softmax(by_hand(path, manifest, batch)), atol=1e-6
    )
    assert f"max_batch_size: {batch}\n" in (tmp_path / "models/m/config.pbtxt").read_text()


def test_a_file_that_only_says_that_it_takes_any_batch(imported: Importer, tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "theirs.onnx", foreign_networks.network("densenet"), dynamic=False)
    model = onnx.load(path)
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_param = "n"
    onnx.save(model, path)
    assert list(imported(path).parity.batches) == ["1", "2", "3", "4"]


def pixels_network(path: Path, *, channels_last: bool, datatype: int) -> Path:
    """Writes a network with 3 logits: the mean of each channel of an 8 x 8 image, scaled to 0 to 10."""
    shape, axes = (["n", 8, 8, 3], [1, 2]) if channels_last else (["n", 3, 8, 8], [2, 3])
    scale = 10 / 255 if datatype == TensorProto.UINT8 else 10.0
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats"], ["means"], axes=axes, keepdims=0),
        helper.make_node("Mul", ["means", "scale"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "means",
        [helper.make_tensor_value_info("pixels", datatype, shape)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(np.array(scale, np.float32), "scale")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7), path)
    return path


@pytest.mark.parametrize("channels_last", [True, False], ids=["NHWC", "NCHW"])
@pytest.mark.parametrize("datatype", [TensorProto.UINT8, TensorProto.FLOAT], ids=["uint8", "float"])
def test_every_form_of_input(datatype: int, channels_last: bool, imported: Importer, tmp_path: Path) -> None:
    path = pixels_network(tmp_path / "theirs.onnx", channels_last=channels_last, datatype=datatype)
    uint8 = datatype == TensorProto.UINT8
    manifest = imported(path, Given() if uint8 else Given(mean=(0.0,) * 3, std=(1.0,) * 3))
    assert manifest.input.datatype == ("UINT8" if uint8 else "FP32")
    assert (manifest.input.layout, manifest.preprocessing.normalize) == (
        "NHWC" if channels_last else "NCHW",
        "none" if uint8 else "host",
    )
    # All forms get the same image, so their probabilities are equal.
    rgb = manifests.TensorInfo("x", "UINT8", (8, 8, 3), "NHWC")
    image = Preprocessor(manifest.preprocessing, rgb).encoded(GOLDEN)
    expected = softmax(image.mean(axis=(0, 1)).astype(np.float32) / 25.5)
    np.testing.assert_allclose(golden_rows(served(tmp_path).parent)[0], expected, atol=1e-5)


def test_classes_in_further_dimensions_are_flattened(imported: Importer, tmp_path: Path) -> None:
    network = foreign_networks.network("mobilenet")
    path = onnx_file(tmp_path / "theirs.onnx", nn.Sequential(network, nn.Unflatten(1, (5, 1, 1))))
    manifest = imported(path)
    assert manifest.output.shape == (5,)
    np.testing.assert_allclose(
        golden_rows(served(tmp_path).parent)[0], softmax(by_hand(path, manifest).ravel()), atol=1e-6
    )


def test_old_files_list_their_weights_as_inputs(imported: Importer, tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "theirs.onnx", foreign_networks.network("densenet"), dynamic=False)
    model = onnx.load(path)
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    onnx.save(model, path)
    manifest = imported(path)
    assert (manifest.onnx.ir_version, list(manifest.parity.batches)) == (3, ["1", "2", "3", "4"])


def test_external_data_beside_the_file_is_embedded(imported: Importer, tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "plain.onnx", foreign_networks.network("densenet"))
    outside = tmp_path / "outside.onnx"
    onnx.save(onnx.load(path), outside, save_as_external_data=True, location="theirs.bin", size_threshold=0)
    digest = hashlib.sha256((tmp_path / "theirs.bin").read_bytes()).hexdigest()
    first, second = imported(path), imported(outside, version=2)
    assert second.golden == first.golden
    assert second.weights["external data theirs.bin"] == digest
    shutil.rmtree(tmp_path / "models/m/1")
    assert not any(t.external_data for t in onnx.load(tmp_path / "models/m/2/model.onnx").graph.initializer)


class Random(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = foreign_networks.network("densenet")

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x + torch.randn_like(x))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Random(), "two runs of the file on the same image differ, because it draws random numbers"),
        (nn.Sequential(foreign_networks.network("densenet"), nn.Hardsigmoid()), "as if each class had its own sigmoid"),
        (nn.Conv2d(3, 4, 3), r"returns shape \[1, 4, 14, 14\] for a batch of 1, expected \[1, classes\]"),
        (nn.Sequential(nn.Flatten(), nn.Linear(768, 1)), "one value for an image .* pass --activation sigmoid"),
    ],
)
def test_what_is_no_classifier_leaves_nothing(
    network: nn.Module, message: str, imported: Importer, tmp_path: Path
) -> None:
    path = onnx_file(tmp_path / "theirs.onnx", network.eval())
    with pytest.raises(ExportError, match=message):
        imported(path)
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"opset": 99}, r"theirs.onnx cannot be loaded: .*opset 99 .*, but onnxruntime \S+ reads up to opset \d+"),
        ({"ir": 99}, r"theirs.onnx cannot be loaded: .*IR version 99 .*, but \S+ \S+ reads up to IR version \d+"),
    ],
)
def test_a_file_too_new_names_the_versions(
    change: dict[str, int], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = onnx.load_model_from_string(tiny_onnx())
    model.opset_import[0].version = change.get("opset", 18)
    model.ir_version = change.get("ir", 10)
    path = tmp_path / "theirs.onnx"
    path.write_bytes(model.SerializeToString())
    assert import_onnx([str(path), "--repository", str(tmp_path / "models")]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "models").exists()


def test_the_command_with_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tiny.onnx"
    path.write_bytes(tiny_onnx())
    (tmp_path / "names.txt").write_text("dark\nleft\nbright\n")
    command = [str(path), "--labels", str(tmp_path / "names.txt"), "--repository", str(tmp_path / "models")]
    assert import_onnx(command) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path}/models/tiny/1\n"
    assert [line.split()[0] for line in err.splitlines()] == ["read", "check", "verify", "publish"]
    assert "3 classes, returns probabilities" in err
    assert "the file is published unchanged" in err
    (tmp_path / "names.txt").write_text("dark\nbright\n")
    assert import_onnx(command) == 1
    assert "names.txt has 2 labels, the network has 3 classes; correct the file\n" in capsys.readouterr().err
    assert import_onnx([str(path), "--labels", "imagenet", "--repository", str(tmp_path / "models")]) == 1
    assert "the built-in list of ImageNet labels has 1000 labels, the network has 3 classes" in capsys.readouterr().err
    assert not (tmp_path / "models/tiny/2").exists()


# What the extra `import` leaves out of `export`, and what comes with other extras.
NOT_NEEDED = ("torch", "onnxscript", "safetensors", "sklearn", "cv2")


def without(modules: Sequence[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs `cnnserve` where these modules cannot be imported."""
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({modules!r})); from cnnserve.cli import main; sys.exit(main())"
    )
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_an_import_needs_no_torch(tmp_path: Path) -> None:
    helped = without(NOT_NEEDED, "import", "--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "--evaluation DIR" in helped.stdout
    path = onnx_file(tmp_path / "theirs.onnx", foreign_networks.network("densenet"))
    flags = f"--mean 0.5,0.5,0.5 --std 0.25,0.25,0.25 --max-batch-size 4 --repository {tmp_path}/models"
    done = without(NOT_NEEDED, "import", str(path), *flags.split())
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/models/theirs/1\n"), done.stderr


def test_the_hint_names_the_extra_without_torch(tmp_path: Path) -> None:
    done = without(["onnx"], "import", str(tmp_path / "theirs.onnx"))
    assert done.returncode == 1
    assert 'needs onnx, which is not installed: pip install "cnnserve[cpu,import]"' in done.stderr


def test_the_extras_hold_what_is_needed() -> None:
    extras = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    names = {
        extra: {re.split("[<>=!; ]", each)[0] for each in needs}
        for extra, needs in extras["optional-dependencies"].items()
    }
    assert names["import"] == {"onnx", "pillow"}
    # The container image has the extra cpu: OpenCV is asked for by name, or not there.
    assert names["opencv"] == {"opencv-python-headless"}
    assert not names["opencv"] & (names["cpu"] | names["gpu"] | names["export"])


@pytest.mark.parametrize("name", ["a\\b", 'a"b', "a\nb", "\x1b[31m"])
def test_any_name_of_an_input_is_published_so_that_it_can_be_served(
    name: str, imported: Importer, tmp_path: Path
) -> None:
    model = onnx.load_model_from_string(tiny_onnx())
    before, model.graph.input[0].name = model.graph.input[0].name, name
    for node in model.graph.node:
        node.input[:] = [name if used == before else used for used in node.input]
    (tmp_path / "theirs.onnx").write_bytes(model.SerializeToString())
    manifest = imported(tmp_path / "theirs.onnx", Given())
    assert manifest.input.name == name
    config = pbtxt.read(tmp_path / "models" / "m")
    assert config is not None
    assert config.input[0].name == name
