import dataclasses
import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from torch import Tensor, nn

from cnnserve.runtime.session import Session
from cnnserve_export import convert
from cnnserve_export.contract import Contract, contract
from cnnserve_export.errors import ExportError
from cnnserve_export.pipeline import Export

TinyExport = Callable[..., Export]


@pytest.fixture
def job(tiny_export: TinyExport, tmp_path: Path) -> Export:
    return tiny_export(tmp_path)


def contract_of(job: Export, form: str = "uint8") -> Contract:
    return contract(job.preprocessing, form, job.class_count)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("form", "datatype", "shape"), [("uint8", "UINT8", (-1, 8, 8, 3)), ("float32", "FP32", (-1, 3, 8, 8))]
)
def test_the_file_declares_the_contract(
    form: str, datatype: str, shape: tuple[int, ...], job: Export, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    info = convert.to_onnx(job.network, contract_of(job, form), path)
    session = Session(path)
    assert [(spec.name, spec.datatype, spec.shape) for spec in session.inputs] == [("image", datatype, shape)]
    assert [(spec.name, spec.datatype, spec.shape) for spec in session.outputs] == [("probabilities", "FP32", (-1, 4))]
    assert (info.file, info.opset, info.ir_version, info.precision) == ("model.onnx", 18, 10, "fp32")
    model = onnx.load(path, load_external_data=False)
    assert (model.ir_version, model.opset_import[0].version) == (info.ir_version, info.opset)
    for value in (model.graph.input[0], model.graph.output[0]):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert not any(tensor.external_data for tensor in model.graph.initializer)


@pytest.mark.usefixtures("converts_once")
@pytest.mark.parametrize("size", [1, 2, 5])
def test_any_batch_runs(size: int, job: Export, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    convert.to_onnx(job.network, contract_of(job), path)
    (rows,) = Session(path).run(np.zeros((size, 8, 8, 3), np.uint8))
    np.testing.assert_allclose(rows.sum(axis=1), np.ones(size), rtol=1e-5)


def test_a_network_in_training_mode_is_exported_for_serving(job: Export, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    convert.to_onnx(job.network.train(), contract_of(job), path)
    session, row = Session(path), np.full((1, 8, 8, 3), 90, np.uint8)
    np.testing.assert_array_equal(session.run(row)[0], session.run(row)[0])
    assert not job.network.training


def test_two_exports_are_identical_and_name_no_source(job: Export, tmp_path: Path) -> None:
    first, second = tmp_path / "first.onnx", tmp_path / "second.onnx"
    convert.to_onnx(job.network, contract_of(job), first)
    convert.to_onnx(job.network, contract_of(job), second)
    data = first.read_bytes()
    assert data == second.read_bytes()
    for trace in (b".py", b"site-packages", b"stack_trace", str(Path(__file__).parents[2]).encode(), b"conftest"):
        assert trace not in data


def test_a_later_opset_is_stated(job: Export, tmp_path: Path) -> None:
    info = convert.to_onnx(job.network, contract_of(job), tmp_path / "model.onnx", opset=21)
    assert (info.opset, info.ir_version) == (21, 10)
    assert Session(tmp_path / "model.onnx").outputs[0].shape == (-1, 4)


def test_a_wrong_class_count_is_refused(job: Export, tmp_path: Path) -> None:
    wrong = contract(job.preprocessing, "uint8", 5)
    with pytest.raises(ExportError, match=r"returns \[4\] values for an image, expected \[5\] classes"):
        convert.to_onnx(job.network, wrong, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_a_fixed_batch_is_refused(job: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = convert._trace

    def fixed(network: nn.Module, example: Tensor, opset: int) -> onnx.ModelProto:
        model = trace(network, example, opset)
        model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 2
        return model

    monkeypatch.setattr(convert, "_trace", fixed)
    with pytest.raises(ExportError, match="fixed the batch of 'probabilities' at 2"):
        convert.to_onnx(job.network, contract_of(job), tmp_path / "model.onnx")


def test_the_exporter_is_quiet_and_only_it(caplog: pytest.LogCaptureFixture, job: Export, tmp_path: Path) -> None:
    convert.to_onnx(job.network, contract_of(job), tmp_path / "model.onnx")
    assert not [record for record in caplog.records if "torchvision" in record.getMessage()]
    assert logging.getLogger("torch.onnx._internal.exporter._registration").level == logging.NOTSET
    with pytest.raises(FutureWarning, match="another"), convert._quiet_exporter():
        warnings.warn("another warning", FutureWarning, stacklevel=1)


def test_preprocessing_without_a_size_is_refused(job: Export) -> None:
    with pytest.raises(ExportError, match="no fixed size"):
        contract(dataclasses.replace(job.preprocessing, crop=None), "uint8", 4)
