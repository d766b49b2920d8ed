"""Converts an fp32 ONNX file to fp16 or int8; the input stays the same, and the probabilities stay FP32.

int8 quantization is static and in QDQ form: uint8 activations, int8 weights with a scale per channel, int32 biases. The
normalisation before the first layer, the logits and the softmax stay in float.
"""

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import onnx

# First, because it disables the telemetry of ONNX Runtime, which reads that setting when it is loaded.
from cnnserve.repository import onnx_precision
from cnnserve.runtime import session as _session  # noqa: F401
from cnnserve_export import convert
from cnnserve_export.calibration import Ranges
from cnnserve_export.errors import ExportError

WeightBits = Literal[7, 8]

# Operators that ONNX Runtime's CPU provider computes with integers, or that pass integers through.
OPERATORS = (
    "Add",
    "AveragePool",
    "Clip",
    "Concat",
    "Conv",
    "Flatten",
    "Gemm",
    "GlobalAveragePool",
    "LeakyRelu",
    "MatMul",
    "MaxPool",
    "Mul",
    "Relu",
    "Reshape",
    "Sigmoid",
    "Transpose",
)
# Most disk space that a conversion needs at once, as a multiple of the size of its source file.
_ROOM = 3
# Operators at which the normalisation ends. Values computed from a shape do not belong to it either.
_ENDS = frozenset({"Conv", "Gemm", "MatMul", "Shape", "Size"})


def prepare(source: Path, target: Path) -> None:
    """Writes `source` to `target` with constants and batch normalisations folded and shapes inferred."""
    from onnxruntime.quantization import quant_pre_process  # noqa: PLC0415

    with _tools(source, target.parent):
        # Symbolic shape inference is for the shapes of transformers.
        quant_pre_process(str(source), str(target), skip_symbolic_shape=True)


def to_int8(prepared: Path, target: Path, ranges: Ranges, weight_bits: WeightBits) -> None:
    """Writes the int8 form of a prepared model to `target`.

    x86 processors without VNNI saturate sums of two products at 16 bits. With weights of 7 bits no sum needs more bits,
    so these processors compute the same as all others.
    Raises `ExportError` if the network has no layer to quantize, or if ONNX Runtime cannot convert it.
    """
    from onnxruntime import quantization as ort  # noqa: PLC0415

    cache = target.with_suffix(".ranges.json")
    data = {name: ort.TensorData(lowest=low, highest=high) for name, (low, high) in ranges.items()}
    ort.save_tensors_data(ort.TensorsData(ort.CalibrationMethod.MinMax, data), cache)
    with _tools(prepared, target.parent):
        ort.quantize_static(
            prepared,
            target,
            calibration_cache_path=cache,
            quant_format=ort.QuantFormat.QDQ,
            op_types_to_quantize=list(OPERATORS),
            per_channel=True,
            reduce_range=weight_bits == 7,
            activation_type=ort.QuantType.QUInt8,
            weight_type=ort.QuantType.QInt8,
            nodes_to_exclude=_normalisation(onnx.load(prepared).graph),
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
        )
    _write(onnx.load(target), target)
    with target.open("rb") as file:
        if onnx_precision.of_file(file) != "int8":
            raise ExportError("the network has no layer that int8 can speed up; publish it with --precision fp32")


def to_fp16(prepared: Path, target: Path) -> None:
    """Writes the fp16 form of a prepared model to `target`: weights and layers in half precision.

    Raises `ExportError` if ONNX Runtime cannot convert the network.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16  # noqa: PLC0415
    from onnxruntime.transformers.onnx_model import OnnxModel  # noqa: PLC0415

    model = onnx.load(prepared)
    kept = [*_normalisation(model.graph), *(node.name for node in model.graph.node if node.op_type == "Softmax")]
    with _tools(prepared, target.parent):
        half: onnx.ModelProto = convert_float_to_float16(model, keep_io_types=True, node_block_list=kept)
        _end_in_float(half.graph)
        # The converter appends its casts at the end of the graph.
        OnnxModel.graph_topological_sort(half.graph)
    _write(half, target)


def _end_in_float(graph: onnx.GraphProto) -> None:
    # The converter casts the probabilities to half precision and back; then they no longer sum to 1.
    producer = {name: node for node in graph.node for name in node.output}
    node = producer[graph.output[0].name]
    casts = []
    while node.op_type == "Cast":
        casts.append(node)
        node = producer[node.input[0]]
    if node.op_type == "Softmax":
        for cast in casts:
            graph.node.remove(cast)
        node.output[0] = graph.output[0].name


def _write(model: onnx.ModelProto, target: Path) -> None:
    # ONNX Runtime's tools list every operator set that they know, used or not.
    used = {node.domain for node in model.graph.node}
    kept = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    convert.write(model, target)


def _normalisation(graph: onnx.GraphProto) -> list[str]:
    """Returns the names of the nodes between the image and the first layers with weights."""
    reached = {value.name for value in graph.input}
    names = []
    for node in graph.node:
        if node.op_type not in _ENDS and reached.intersection(node.input):
            names.append(node.name)
            reached.update(node.output)
    return names


@contextmanager
def _tools(source: Path, folder: Path) -> Iterator[None]:
    """Lets ONNX Runtime's tools work on `source`, with their temporary files in `folder`.

    The tools log advice for programmers to the root logger; users do not see it.
    """
    disabled, elsewhere = logging.root.manager.disable, tempfile.tempdir
    logging.disable(logging.CRITICAL)
    tempfile.tempdir = str(folder)
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        # The tools ignore errors of the disk, and fail later because a file is incomplete.
        _require_room(folder, _ROOM * source.stat().st_size)
        # The tools raise errors of any type if they do not support a network.
        raise ExportError(
            f"ONNX Runtime cannot convert this network ({error}); publish it with --precision fp32"
        ) from error
    finally:
        logging.disable(disabled)
        tempfile.tempdir = elsewhere


def _require_room(folder: Path, size: int) -> None:
    """Raises the `OSError` of the disk if it has no room for `size` bytes."""
    with tempfile.TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, size)
