import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from cnnserve.errors import ModelLoadFailed
from cnnserve.images.preprocessing import Preprocessor
from cnnserve_export import convert, pipeline, verify
from cnnserve_export.contract import Contract, contract
from cnnserve_export.errors import ExportError
from cnnserve_export.outputs import Output
from cnnserve_export.pipeline import Export
from cnnserve_export.progress import Progress

TinyExport = Callable[..., Export]

pytestmark = pytest.mark.usefixtures("converts_once")


@pytest.fixture
def job(tiny_export: TinyExport, tmp_path: Path) -> Export:
    return tiny_export(tmp_path)


def converted(job: Export, folder: Path, form: str = "uint8") -> tuple[Path, Contract]:
    made = contract(job.preprocessing, form, job.class_count)  # type: ignore[arg-type]
    convert.to_onnx(job.network, made, folder / "model.onnx")
    return folder / "model.onnx", made


def proof(path: Path, job: Export, made: Contract, maximum: int = 8) -> verify.Evidence:
    return verify.verify(path, job.network, made, golden_images=job.golden_images, max_batch_size=maximum)


def change(path: Path, tensor: str, by: float) -> None:
    """Adds `by` to the first value of a weight tensor of the file."""
    model = onnx.load(path)
    (weight,) = [item for item in model.graph.initializer if item.name == tensor]
    values = numpy_helper.to_array(weight).copy()
    values.flat[0] += by
    weight.CopyFrom(numpy_helper.from_array(values, tensor))
    onnx.save(model, path)


@pytest.mark.parametrize("form", ["uint8", "float32"])
def test_a_faithful_file_is_proved(form: str, job: Export, tmp_path: Path) -> None:
    path, made = converted(job, tmp_path, form)
    evidence = proof(path, job, made)
    assert list(evidence.parity.batches) == ["1", "2", "3", "8"]
    assert all(difference < 1e-5 for difference in evidence.parity.batches.values())
    assert evidence.parity.provider == "CPUExecutionProvider"


def test_the_golden_probabilities_are_pytorchs(job: Export, tmp_path: Path) -> None:
    path, made = converted(job, tmp_path)
    evidence = proof(path, job, made)
    by_host = contract(job.preprocessing, "float32", job.class_count)
    row = Preprocessor(by_host.preprocessing, by_host.input).encoded(*job.golden_images.values())
    with torch.inference_mode():
        expected = job.network(torch.from_numpy(row)[None]).softmax(dim=1)[0]
    np.testing.assert_allclose(evidence.probabilities[0], expected.numpy(), atol=1e-6)


@pytest.mark.parametrize(("maximum", "sizes"), [(1, ["1"]), (2, ["1", "2"]), (3, ["1", "2", "3"])])
def test_no_batch_is_run_that_will_not_be_served(maximum: int, sizes: list[str], job: Export, tmp_path: Path) -> None:
    path, made = converted(job, tmp_path)
    assert list(proof(path, job, made, maximum).parity.batches) == sizes


def test_an_altered_weight_is_found(job: Export, tmp_path: Path) -> None:
    path, made = converted(job, tmp_path)
    change(path, "network.head.bias", 0.01)
    with pytest.raises(
        ExportError,
        match=r"batch of 1, row 0, class \d: it returns 0\.\d{7}, PyTorch returns 0\.\d{7} \(tolerance 0\.0001\)",
    ):
        proof(path, job, made)


def test_a_wrong_normalisation_in_the_graph_is_found(job: Export, tmp_path: Path) -> None:
    path, made = converted(job, tmp_path)
    change(path, "shift", 0.05)
    with pytest.raises(ExportError, match="differs from PyTorch"):
        proof(path, job, made)


def test_logits_are_no_probabilities(job: Export, tmp_path: Path) -> None:
    path, made = converted(job, tmp_path)
    model = onnx.load(path)
    (softmax,) = [node for node in model.graph.node if node.op_type == "Softmax"]
    softmax.op_type = "Identity"
    del softmax.attribute[:]
    onnx.save(model, path)
    with pytest.raises(ExportError, match="does not return probabilities that sum to 1"):
        proof(path, job, made)


def test_a_network_that_answers_nan_is_refused(job: Export, tmp_path: Path) -> None:
    with torch.no_grad():
        job.network.get_parameter("head.bias")[0] = float("nan")
    path, made = converted(job, tmp_path)
    with pytest.raises(ExportError, match="PyTorch network does not return probabilities"):
        proof(path, job, made)


def test_a_softmax_of_the_networks_own_is_its_answer(job: Export, tmp_path: Path) -> None:
    network = nn.Sequential(job.network, nn.Softmax(dim=1))
    made = contract(job.preprocessing, "uint8", job.class_count, returned=Output())
    convert.to_onnx(network, made, tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert [node.op_type for node in graph.node].count("Softmax") == 1
    evidence = verify.verify(tmp_path / "model.onnx", network, made, golden_images=job.golden_images, max_batch_size=4)
    plain = tmp_path / "plain.onnx"
    logits = contract(job.preprocessing, "uint8", job.class_count)
    convert.to_onnx(job.network, logits, plain)
    np.testing.assert_array_equal(evidence.probabilities, proof(plain, job, logits).probabilities)


@pytest.mark.parametrize(("ir_version", "opset"), [(99, 18), (10, 99)])
def test_a_file_that_the_runtime_cannot_read_is_refused_before_the_work(
    ir_version: int, opset: int, job: Export, tmp_path: Path
) -> None:
    path, made = converted(job, tmp_path)
    model = onnx.load(path)
    model.ir_version, model.opset_import[0].version = ir_version, opset
    onnx.save(model, path)
    job.network.register_forward_pre_hook(lambda *_: pytest.fail("PyTorch was asked"))
    with pytest.raises(
        ModelLoadFailed, match=rf"IR version {ir_version} and opset {opset} of ai.onnx, but .* reads .*pip install -U"
    ):
        proof(path, job, made)


def test_the_progress_ends_at_its_total(job: Export, tmp_path: Path) -> None:
    path, made = converted(job, tmp_path)
    steps: list[tuple[int, int]] = []
    options = {"golden_images": job.golden_images, "max_batch_size": 20}
    verify.verify(path, job.network, made, **options, report=lambda done, total: steps.append((done, total)))  # type: ignore[arg-type]
    assert [done for done, _ in steps] == [8, 16, 20, 21, 23, 26, 46]
    assert {total for _, total in steps} == {46}


@pytest.mark.parametrize(
    ("scale", "doubt"),
    [(1.0, ""), (0.0, "all images have the same probabilities"), (1e30, "every probability is exactly 0 or 1")],
)
def test_what_the_proof_cannot_see_is_said(scale: float, doubt: str, tiny_export: TinyExport, tmp_path: Path) -> None:
    job, said = tiny_export(tmp_path / "models"), io.StringIO()
    with torch.no_grad():
        job.network.get_parameter("head.weight").mul_(scale)
    pipeline.run(job, Progress(said))
    (line,) = [line for line in said.getvalue().splitlines() if line.startswith("verify ")]
    assert doubt in line
    assert ("WARNING" in line) == bool(doubt)
