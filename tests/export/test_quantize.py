import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from cnnserve.images.preprocessing import Preprocessor
from cnnserve.runtime.session import Session
from cnnserve_export import calibration, convert, images, quantize
from cnnserve_export.contract import Contract, contract
from cnnserve_export.errors import ExportError
from cnnserve_export.images import ImageSet
from cnnserve_export.pipeline import Export

TinyExport = Callable[..., Export]

pytestmark = pytest.mark.usefixtures("converts_once")
PICTURES = ImageSet("pictures", images.built_in().items[:12])


@pytest.fixture
def job(tiny_export: TinyExport, tmp_path: Path) -> Export:
    return tiny_export(tmp_path)


def prepared(job: Export, folder: Path, form: str = "uint8", opset: int = 18) -> tuple[Path, Contract]:
    made = contract(job.preprocessing, form, job.class_count)  # type: ignore[arg-type]
    convert.to_onnx(job.network, made, folder / "fp32.onnx", opset)
    quantize.prepare(folder / "fp32.onnx", folder / "prepared.onnx")
    return folder / "prepared.onnx", made


def ranges_of(path: Path, made: Contract) -> calibration.Ranges:
    preprocessor = Preprocessor(made.preprocessing, made.input)
    return calibration.ranges(path, quantize.OPERATORS, PICTURES, preprocessor, lambda *_: None)


def to_int8(path: Path, made: Contract, weight_bits: quantize.WeightBits = 7) -> onnx.ModelProto:
    quantize.to_int8(path, path.with_name("int8.onnx"), ranges_of(path, made), weight_bits)
    return onnx.load(path.with_name("int8.onnx"))


def rows_of(made: Contract) -> np.ndarray:
    preprocessor = Preprocessor(made.preprocessing, made.input)
    return np.concatenate([batch.rows for batch in PICTURES.batches(preprocessor)])


def test_the_ranges_are_the_quantizers_own(job: Export, tmp_path: Path) -> None:
    """The exporter finds the ranges in batches, ONNX Runtime's calibrator over all images at once: both are equal."""
    from onnxruntime.quantization import MinMaxCalibrater  # noqa: PLC0415

    path, made = prepared(job, tmp_path)
    told: list[tuple[int, int]] = []
    ours = calibration.ranges(
        path,
        quantize.OPERATORS,
        PICTURES,
        Preprocessor(made.preprocessing, made.input),
        lambda *steps: told.append(steps),
    )
    calibrator = MinMaxCalibrater(path, quantize.OPERATORS, str(tmp_path / "augmented.onnx"))
    calibrator.augment_graph()
    calibrator.create_inference_session()
    reader = iter([{"image": rows_of(made)}])
    calibrator.collect_data(type("Reader", (), {"get_next": lambda _: next(reader, None)})())
    theirs = calibrator.compute_data()
    assert set(ours) == set(theirs.keys())
    for name, (low, high) in ours.items():
        np.testing.assert_allclose((low[0], high[0]), np.ravel(theirs[name].range_value), rtol=1e-5, atol=1e-6)
    assert told == [(8, 12), (12, 12)]


@pytest.mark.parametrize(("form", "opset"), [("uint8", 18), ("float32", 22)])
def test_int8_is_what_the_runtime_computes_with_integers(form: str, opset: int, job: Export, tmp_path: Path) -> None:
    path, made = prepared(job, tmp_path, form, opset)
    model = to_int8(path, made)
    onnx.checker.check_model(model, full_check=True)
    assert (model.ir_version, [(entry.domain, entry.version) for entry in model.opset_import]) == (10, [("", opset)])
    kinds = {item.name: item.data_type for item in model.graph.initializer}
    weights = [
        numpy_helper.to_array(item) for item in model.graph.initializer if item.name.endswith("weight_quantized")
    ]
    assert sorted(array.shape for array in weights) == [(4, 180), (5, 3, 3, 3)]
    # 255 * 64 * 2 is less than 2**15, so sums of two products never saturate.
    assert all(array.dtype == np.int8 and np.abs(array.astype(int)).max() <= 64 for array in weights)
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            assert kinds[node.input[2]] == TensorProto.UINT8
    scales = [numpy_helper.to_array(item) for item in model.graph.initializer if item.name.endswith("weight_scale")]
    assert sorted(array.shape for array in scales) == [(4,), (5,)]
    fp32, int8 = Session(tmp_path / "fp32.onnx"), Session(tmp_path / "int8.onnx")
    assert (int8.inputs, int8.outputs) == (fp32.inputs, fp32.outputs)
    rows = rows_of(made)
    np.testing.assert_allclose(int8.run(rows)[0], fp32.run(rows)[0], atol=0.05)


def test_eight_bits_use_the_whole_range(job: Export, tmp_path: Path) -> None:
    model = to_int8(*prepared(job, tmp_path), weight_bits=8)
    weights = [
        numpy_helper.to_array(item) for item in model.graph.initializer if item.name.endswith("weight_quantized")
    ]
    assert all(np.abs(array.astype(int)).max() == 127 for array in weights)


def test_normalisation_logits_and_softmax_stay_in_float(job: Export, tmp_path: Path) -> None:
    graph = to_int8(*prepared(job, tmp_path)).graph
    producer = {name: node for node in graph.node for name in node.output}
    (softmax,) = [node for node in graph.node if node.op_type == "Softmax"]
    assert producer[softmax.input[0]].op_type == "Gemm"
    first = next(node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] in producer)
    chain = [producer[first.input[0]].op_type]
    while producer.get(producer[first.input[0]].input[0]):
        first = producer[first.input[0]]
        chain.append(producer[first.input[0]].op_type)
    assert chain == ["Add", "Mul", "Cast", "Transpose"]


@pytest.mark.parametrize("form", ["uint8", "float32"])
def test_fp16_computes_in_half_between_the_edges(form: str, job: Export, tmp_path: Path) -> None:
    path, made = prepared(job, tmp_path, form)
    quantize.to_fp16(path, tmp_path / "fp16.onnx")
    model = onnx.load(tmp_path / "fp16.onnx")
    onnx.checker.check_model(model, full_check=True)
    graph = model.graph
    kinds = {item.name: item.data_type for item in graph.initializer}
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm"):
            assert {kinds[name] for name in node.input[1:]} == {TensorProto.FLOAT16}
    half, fp32 = Session(tmp_path / "fp16.onnx"), Session(tmp_path / "fp32.onnx")
    assert (half.inputs, half.outputs) == (fp32.inputs, fp32.outputs)
    rows = rows_of(made)
    np.testing.assert_allclose(half.run(rows)[0], fp32.run(rows)[0], atol=2e-3)
    np.testing.assert_allclose(half.run(rows)[0].sum(axis=1), np.ones(len(rows)), atol=1e-6)


def test_another_process_writes_the_same_bytes(job: Export, tmp_path: Path) -> None:
    path, made = prepared(job, tmp_path)
    to_int8(path, made)
    quantize.to_fp16(path, tmp_path / "fp16.onnx")
    again = tmp_path / "again"
    again.mkdir()
    # If the order of a set decided about bytes, another hash seed would change them.
    code = f"""
import sys
from pathlib import Path
from cnnserve.images.preprocessing import Preprocessor
from cnnserve_export import calibration, images, quantize
from cnnserve_export.contract import contract
from cnnserve.repository.manifest import Preprocessing, Resize
made = contract({job.preprocessing!r}, "uint8", 4)
pictures = images.ImageSet("pictures", images.built_in().items[:12])
quantize.prepare(Path({str(tmp_path / "fp32.onnx")!r}), Path("prepared.onnx"))
ranges = calibration.ranges(Path("prepared.onnx"), quantize.OPERATORS, pictures,
    Preprocessor(made.preprocessing, made.input), lambda *_: None)
quantize.to_int8(Path("prepared.onnx"), Path("int8.onnx"), ranges, 7)
quantize.to_fp16(Path("prepared.onnx"), Path("fp16.onnx"))
"""
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=again,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    for name in ("int8.onnx", "fp16.onnx"):
        data = (again / name).read_bytes()
        assert data == (tmp_path / name).read_bytes()
        assert str(tmp_path).encode() not in data


def test_a_network_without_layers_is_no_case_for_int8(tmp_path: Path, job: Export) -> None:
    path, _ = prepared(job, tmp_path)
    model = onnx.load(path)
    (softmax,) = [node for node in model.graph.node if node.op_type == "Softmax"]
    softmax.input[0] = "image_as_floats"
    del model.graph.node[:]
    model.graph.node.append(onnx.helper.make_node("Cast", ["image"], ["image_as_floats"], to=TensorProto.FLOAT))
    model.graph.node.append(softmax)
    onnx.save(model, path)
    with pytest.raises(ExportError, match="no layer that int8 can speed up"):
        quantize.to_int8(path, tmp_path / "int8.onnx", {}, 7)


def test_what_the_quantizer_cannot_do_is_an_error_of_the_export(
    tmp_path: Path, job: Export, caplog: pytest.LogCaptureFixture
) -> None:
    path, _ = prepared(job, tmp_path)
    caplog.clear()
    with pytest.raises(
        ExportError, match=r"ONNX Runtime cannot convert this network \(.*publish it with --precision fp32"
    ):
        quantize.to_int8(path, tmp_path / "int8.onnx", {}, 7)
    assert not caplog.records
