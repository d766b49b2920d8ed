"""A proved fp32 file -> the same network in fp16 or int8, with the same input and the same FP32 probabilities.

int8 is static and in QDQ form: uint8 activations, int8 weights with a scale per channel, int32 biases. The
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

# First: it keeps ONNX Runtime from reporting home, which is read when that is loaded.
from cnnserve.runtime import session as _session  # noqa: F401
from cnnserve_export import convert
from cnnserve_export.calibration import Ranges
from cnnserve_export.errors import ExportError

WeightBits = Literal[7, 8]

# What ONNX Runtime's CPU provider computes with integers, and what it passes through.
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
# How many times the source file's size its conversion may take on the disk at once.
_ROOM = 3
# Where the normalisation ends; what is computed from a shape is no part of it either.
_ENDS = frozenset({"Conv", "Gemm", "MatMul", "Shape", "Size"})


def prepare(source: Path, target: Path) -> None:
    """Folds constants and batch normalisations and infers shapes, as both conversions need it."""
    from onnxruntime.quantization import quant_pre_process  # noqa: PLC0415

    with _tools(source, target.parent):
        # Symbolic inference is for transformers' shapes.
        quant_pre_process(str(source), str(target), skip_symbolic_shape=True)


def to_int8(prepared: Path, target: Path, ranges: Ranges, weight_bits: WeightBits) -> None:
    """Writes the int8 form of a prepared model.

    With 7 bits no sum of two products leaves 16 bits, so that x86 processors without VNNI, which saturate there,
    compute what all others do.
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
    model = onnx.load(target)
    if not any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        raise ExportError("the network has no layer that int8 can speed up; publish it with --precision fp32")
    _write(model, target)


def to_fp16(prepared: Path, target: Path) -> None:
    """Writes the fp16 form of a prepared model: weights and layers in half precision."""
    from onnxruntime.transformers.float16 import convert_float_to_float16  # noqa: PLC0415
    from onnxruntime.transformers.onnx_model import OnnxModel  # noqa: PLC0415

    model = onnx.load(prepared)
    kept = [*_normalisation(model.graph), *(node.name for node in model.graph.node if node.op_type == "Softmax")]
    with _tools(prepared, target.parent):
        half: onnx.ModelProto = convert_float_to_float16(model, keep_io_types=True, node_block_list=kept)
        _end_in_float(half.graph)
        # The casts were put at the end.
        OnnxModel.graph_topological_sort(half.graph)
    _write(half, target)


def _end_in_float(graph: onnx.GraphProto) -> None:
    # The converter takes the probabilities to half precision and back, where they no longer sum to 1.
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
    # ONNX Runtime's tools name every operator set that they know.
    used = {node.domain for node in model.graph.node}
    kept = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    convert.write(model, target)


def _normalisation(graph: onnx.GraphProto) -> list[str]:
    """The names of the nodes between the image and the first layers with weights."""
    reached = {value.name for value in graph.input}
    names = []
    for node in graph.node:
        if node.op_type not in _ENDS and reached.intersection(node.input):
            names.append(node.name)
            reached.update(node.output)
    return names


@contextmanager
def _tools(source: Path, folder: Path) -> Iterator[None]:
    """ONNX Runtime's tools at work on `source`, with their temporary files in `folder`.

    Their advice to programmers, which goes to the root logger, is kept from the person who exports.
    """
    disabled, elsewhere = logging.root.manager.disable, tempfile.tempdir
    logging.disable(logging.CRITICAL)
    tempfile.tempdir = str(folder)
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        # Their own code does not look at what the disk answers, and fails later at what it did not write.
        _require_room(folder, _ROOM * source.stat().st_size)
        # Whatever they meet first in a network that they were not made for.
        raise ExportError(
            f"ONNX Runtime cannot convert this network ({error}); publish it with --precision fp32"
        ) from error
    finally:
        logging.disable(disabled)
        tempfile.tempdir = elsewhere


def _require_room(folder: Path, size: int) -> None:
    """Raises the disk's own `OSError` where it has no room for so many bytes."""
    with tempfile.TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, size)
