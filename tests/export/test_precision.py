import dataclasses
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from cnnserve.images.preprocessing import Preprocessor
from cnnserve.repository import manifest as manifests
from cnnserve.runtime.session import Session
from cnnserve_export import agreement, golden, images, pipeline, precision, proof
from cnnserve_export.agreement import Measured
from cnnserve_export.contract import contract
from cnnserve_export.errors import ExportError
from cnnserve_export.images import ImageSet
from cnnserve_export.outputs import Output
from cnnserve_export.pipeline import Export
from cnnserve_export.progress import Progress
from support import golden_rows

TinyExport = Callable[..., Export]

pytestmark = pytest.mark.usefixtures("converts_once")
LABELS = ("ash", "birch", "cedar", "1")


def write(root: Path, seeds: range, folder: str = "") -> Path:
    (root / folder).mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        (root / folder / f"{seed:03}.png").write_bytes(golden.encode_png(golden.picture(seed, 20, 24)))
    return root


@pytest.fixture
def calibration(tmp_path: Path) -> Path:
    return write(tmp_path / "calibration", range(32))


def run(job: Export) -> tuple[manifests.Manifest, Path, list[str]]:
    said = io.StringIO()
    folder = pipeline.run(job, Progress(said))
    manifest = manifests.read(folder)
    assert manifest is not None
    manifests.verify_files(manifest, folder)
    return manifest, folder, said.getvalue().splitlines()


@pytest.mark.parametrize(
    ("wanted", "calibration", "evaluation", "needed", "said"),
    [
        ("int8", False, False, None, "int8 needs the range of every layer's values; pass --calibration DIR"),
        ("int8", False, True, None, "int8 needs the range of every layer's values; pass --calibration DIR"),
        ("fp16", True, False, None, "--calibration has no effect with --precision fp16"),
        ("fp32", True, True, None, "--calibration, --evaluation: no effect with --precision fp32"),
        ("fp32", False, False, 0.0, "--min-agreement: no effect with --precision fp32"),
    ],
)
def test_flags_that_do_not_fit_are_named(
    wanted: str, calibration: bool, evaluation: bool, needed: float | None, said: str, tmp_path: Path
) -> None:
    folder = write(tmp_path, range(1))
    with pytest.raises(ExportError, match=said):
        precision.request(wanted, folder if calibration else None, folder if evaluation else None, needed)  # type: ignore[arg-type]


def test_fp32_is_no_step() -> None:
    assert precision.request("fp32", None, None, None) is None


def test_copies_of_one_image_are_no_calibration(tmp_path: Path) -> None:
    black = golden.encode_png(np.zeros((20, 24, 3), np.uint8))
    write(tmp_path, range(31))
    for number in range(100):
        (tmp_path / f"black-{number}.png").write_bytes(black)
    assert precision.request("int8", tmp_path, None, 0.0) is not None
    (tmp_path / "000.png").unlink()
    with pytest.raises(ExportError, match=r"--calibration: .* holds 31 different images, .* at least 32"):
        precision.request("int8", tmp_path, None, 0.0)


@pytest.mark.parametrize(
    ("count", "needed", "enough"),
    [
        (99, None, False),
        (100, None, True),
        (100, 0.999, True),
        (99, 1.0, False),
        (9, 0.9, False),
        (10, 0.9, True),
        (36, 0.972, True),
        (36, 0.98, False),
        (1, 0.0, True),
    ],
)
def test_an_agreement_needs_images_that_can_show_it(
    count: int, needed: float | None, enough: bool, tmp_path: Path
) -> None:
    write(tmp_path, range(count))
    if enough:
        assert precision.request("fp16", None, tmp_path, needed) is not None
        return
    with pytest.raises(ExportError, match=f"holds {count} different images, too few .* --evaluation") as refused:
        precision.request("fp16", None, tmp_path, needed)
    way_out = float(str(refused.value).rpartition(" ")[2])
    assert precision.request("fp16", None, tmp_path, way_out) is not None


def test_int8_on_other_images_than_it_is_calibrated_on(
    tiny_export: TinyExport, tmp_path: Path, calibration: Path
) -> None:
    evaluation = tmp_path / "evaluation"
    for folder, seeds in {"birch": range(30, 34), "1": range(40, 43), "2": range(50, 52), "oak": range(60, 61)}.items():
        write(evaluation, seeds, folder)
    lowering = precision.request("int8", calibration, evaluation, 0.0)
    job = tiny_export(tmp_path / "models", labels=LABELS, lowering=lowering)
    fp32, fp32_folder, _ = run(tiny_export(tmp_path / "models", network=job.network, labels=LABELS))
    manifest, folder, said = run(job)
    assert [line.split()[0] for line in said] == ["convert", "verify", "int8", "compare", "publish"]
    assert (fp32.onnx.precision, fp32.agreement) == ("fp32", None)
    assert manifest.onnx == dataclasses.replace(fp32.onnx, precision="int8")
    assert manifest.parity == fp32.parity
    found = manifest.agreement
    assert found is not None
    assert (found.images.name, found.images.count, found.seen_in_calibration) == ("evaluation", 10, 2)
    assert found.calibration is not None
    assert (found.calibration.images.name, found.calibration.images.count) == ("calibration", 32)
    # Computed again from the two files. A folder name is first taken as a label, then as a number; "oak" is neither.
    preprocessor = Preprocessor(manifest.preprocessing, manifest.input)
    files = sorted(evaluation.rglob("*.png"))
    rows = np.stack([preprocessor.encoded(path.read_bytes()) for path in files])
    classes = np.array([{"birch": 1, "1": 3, "2": 2, "oak": -1}[path.parent.name] for path in files])
    expected, actual = (Session(path / "model.onnx").run(rows)[0] for path in (fp32_folder, folder))
    assert found.top1 == np.mean(actual.argmax(1) == expected.argmax(1))
    assert found.largest_difference == pytest.approx(np.abs(actual - expected).max(), abs=1e-6)
    known = classes >= 0
    assert found.labelled == 9
    assert found.accuracy == pytest.approx(np.mean(actual.argmax(1)[known] == classes[known]))
    assert found.fp32_accuracy == pytest.approx(np.mean(expected.argmax(1)[known] == classes[known]))
    assert f"{found.top1:.2%}, needed 0.00%" in said[3]
    assert "(9 labelled images)" in said[3]


def test_the_golden_probabilities_are_the_published_files(
    tiny_export: TinyExport, tmp_path: Path, calibration: Path
) -> None:
    job = tiny_export(tmp_path / "models", lowering=precision.request("int8", calibration, None, 0.0))
    manifest, folder, _ = run(job)
    row = Preprocessor(manifest.preprocessing, manifest.input).encoded((folder / "golden.png").read_bytes())
    np.testing.assert_allclose(Session(folder / "model.onnx").run(row[None])[0], golden_rows(folder))
    assert manifest.golden.tolerance == 1e-2


def test_without_an_evaluation_the_manifest_says_what_was_seen(
    tiny_export: TinyExport, tmp_path: Path, calibration: Path
) -> None:
    job = tiny_export(tmp_path / "models", lowering=precision.request("int8", calibration, None, 0.0))
    manifest, _, said = run(job)
    assert manifest.agreement is not None
    assert manifest.agreement.seen_in_calibration == manifest.agreement.images.count == 32
    assert (manifest.agreement.labelled, manifest.agreement.accuracy) == (0, None)
    assert "(calibration, also used for calibration)" in said[3]


def test_fp16_without_a_folder_is_compared_on_built_in_pictures(tiny_export: TinyExport, tmp_path: Path) -> None:
    manifest, folder, said = run(tiny_export(tmp_path / "models", lowering=precision.request("fp16", None, None, None)))
    assert [line.split()[0] for line in said] == ["convert", "verify", "fp16", "compare", "publish"]
    assert manifest.onnx.precision == "fp16"
    assert manifest.agreement is not None
    assert (manifest.agreement.images.name, manifest.agreement.calibration) == ("built-in pictures", None)
    assert manifest.agreement.largest_difference < 5e-3
    assert Session(folder / "model.onnx").inputs[0].datatype == "UINT8"


@pytest.mark.parametrize("wanted", ["fp16", "int8"])
def test_nothing_is_written_outside_the_repository(
    wanted: str, tiny_export: TinyExport, tmp_path: Path, calibration: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All files are in the hidden folder, so if an export is killed, the next export removes them."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    lowering = precision.request(wanted, calibration if wanted == "int8" else None, None, 0.0)  # type: ignore[arg-type]
    before = {*tmp_path.rglob("*")}
    manifest, folder, _ = run(tiny_export(tmp_path / "models", lowering=lowering))
    assert manifest.onnx.precision == wanted
    assert {path.name for path in folder.iterdir()} == {*manifest.files, "manifest.json"}
    assert all(path.is_relative_to(tmp_path / "models") for path in {*tmp_path.rglob("*")} - before)
    assert tempfile.tempdir == str(tmp_path / "nowhere")


def test_too_little_agreement_publishes_nothing(tiny_export: TinyExport, tmp_path: Path, calibration: Path) -> None:
    # The logits are so close that rounding decides about the class.
    job = tiny_export(tmp_path / "models", lowering=precision.request("int8", calibration, None, 0.96))
    with torch.no_grad():
        job.network.get_parameter("head.weight").copy_(job.network.get_parameter("head.weight")[:1].repeat(4, 1))
        job.network.get_parameter("head.weight").add_(1e-4 * torch.randn(4, 180))
        job.network.get_parameter("head.bias").zero_()
    said = io.StringIO()
    with pytest.raises(
        ExportError,
        match=r"\d+ of 32 images .*, needed 96.00%; largest difference of a probability .*. Nothing was publ",
    ):
        pipeline.run(job, Progress(said))
    assert not (tmp_path / "models").exists()
    assert [line.split()[0] for line in said.getvalue().splitlines()] == ["convert", "verify", "int8"]


def test_an_unreadable_image_ends_the_export(tiny_export: TinyExport, tmp_path: Path, calibration: Path) -> None:
    (calibration / "007.png").write_bytes(b"broken")
    job = tiny_export(tmp_path / "models", lowering=precision.request("int8", calibration, None, 0.9))
    with pytest.raises(ExportError, match=r"1 of 32 images in calibration cannot be read(.|\n)*007.png"):
        pipeline.run(job, Progress(io.StringIO()))
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("images", "seven", "eight", "needed", "chosen"),
    [
        (1000, 1000, 1000, 0.99, 0),
        (1000, 995, 1000, 0.99, 0),
        (1000, 994, 1000, 0.99, 1),
        (1000, 989, 991, 0.99, 1),
        (1000, 980, 981, 0.99, 0),
        (1000, 1000, 900, 0.99, 0),
        (30, 29, 30, 0.9, 0),
        (30, 28, 30, 0.9, 1),
    ],
)
def test_weights_that_are_right_on_every_processor_are_preferred(
    images: int, seven: int, eight: int, needed: float, chosen: int
) -> None:
    results = [Measured(images=images, same=same) for same in (seven, eight)]
    assert precision._choose(results, needed) == chosen


def test_answers_that_are_no_probabilities_are_refused(tiny_export: TinyExport, tmp_path: Path) -> None:
    # Intermediate values exceed the range of fp16, but the outputs do not.
    job = tiny_export(tmp_path / "models", lowering=precision.request("fp16", None, None, None))
    with torch.no_grad():
        job.network.get_parameter("body.0.weight").mul_(1e6)
        job.network.get_parameter("head.weight").mul_(1e-6)
    with pytest.raises(ExportError, match="does not return probabilities, because values exceed"):
        pipeline.run(job, Progress(io.StringIO()))
    assert not (tmp_path / "models").exists()


def test_a_manifest_without_agreement_is_read(tiny_export: TinyExport, tmp_path: Path) -> None:
    manifest, folder, _ = run(tiny_export(tmp_path / "models"))
    raw = json.loads((folder / "manifest.json").read_text())
    del raw["agreement"]
    assert manifests.parse(json.dumps(raw)) == manifest


def test_the_progress_of_a_comparison_is_told(tiny_export: TinyExport, tmp_path: Path) -> None:
    _, folder, _ = run(tiny_export(tmp_path / "models"))
    job = tiny_export(tmp_path)
    made = contract(job.preprocessing, "uint8", 4)
    model, told = folder / "model.onnx", list[tuple[int, int]]()
    (result,) = agreement.measure(
        model,
        [model],
        ImageSet("pictures", images.built_in().items[:10]),
        Preprocessor(made.preprocessing, made.input),
        labels=None,
        class_count=4,
        tell=lambda done, total: told.append((done, total)),
    )
    assert told == [(8, 10), (10, 10)]
    assert (result.top1, result.largest_difference, result.accuracy) == (1.0, 0.0, None)


def test_an_image_that_a_batch_changes_is_found(tiny_export: TinyExport, tmp_path: Path) -> None:
    """The last node of the file mixes each row with the first row."""
    _, folder, _ = run(tiny_export(tmp_path / "models"))
    model = onnx.load(folder / "model.onnx")
    last = model.graph.node[-1]
    last.output[0] = "alone"
    model.graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "rows"))
    for node in (
        helper.make_node("ReduceMean", ["alone", "rows"], ["mean"], keepdims=1),
        helper.make_node("Add", ["alone", "mean"], ["sum"]),
        helper.make_node("Softmax", ["sum"], ["probabilities"], axis=1),
    ):
        model.graph.node.append(node)
    onnx.save(model, tmp_path / "mixing.onnx")
    job = tiny_export(tmp_path)
    made = contract(job.preprocessing, "uint8", 4)
    rows = proof.rows(made.preprocessing, made.input, job.golden_images, 8)
    precision._alone_and_together(folder / "model.onnx", rows, "int8", 8)
    with pytest.raises(ExportError, match=r"differs from int8 with one image at a time in a batch of \d+, row"):
        precision._alone_and_together(tmp_path / "mixing.onnx", rows, "int8", 8)


def test_a_name_of_two_classes_is_right_for_both(tiny_export: TinyExport, tmp_path: Path) -> None:
    _, folder, _ = run(tiny_export(tmp_path / "models"))
    job = tiny_export(tmp_path)
    made = contract(job.preprocessing, "uint8", 4)
    model, chosen = folder / "model.onnx", images.folder(write(tmp_path / "set", range(4), "crane"))
    preprocessor = Preprocessor(made.preprocessing, made.input)
    (batch,) = chosen.batches(preprocessor)
    answered = Session(model).run(batch.rows)[0].argmax(axis=1)
    for label in range(4):
        labels = ["crane" if number in (label, (label + 1) % 4) else f"other {number}" for number in range(4)]
        (result,) = agreement.measure(
            model, [model], chosen, preprocessor, labels=labels, class_count=4, tell=lambda *_: None
        )
        assert result.accuracy == result.fp32_accuracy == np.mean(np.isin(answered, [label, (label + 1) % 4]))


class Normalised(nn.Module):
    """Returns probabilities without a softmax operator."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        powers = torch.exp(self.network(x))
        return powers / powers.sum(dim=1, keepdim=True)


@pytest.mark.parametrize("wanted", ["fp16", "int8"])
def test_probabilities_of_the_networks_own_making(
    wanted: str, tiny_export: TinyExport, tmp_path: Path, calibration: Path
) -> None:
    lowering = precision.request(wanted, calibration if wanted == "int8" else None, None, 0.0)  # type: ignore[arg-type]
    network = Normalised(tiny_export(tmp_path).network)
    manifest, folder, _ = run(tiny_export(tmp_path, network=network, returned=Output(), lowering=lowering))
    assert (manifest.onnx.precision, manifest.activation_by) == (wanted, "network")
    assert Session(folder / "model.onnx").outputs[0].datatype == "FP32"
