"""Measures the range of every activation over real images; static quantization takes its scales from these ranges.

A range goes from the smallest to the largest value that occurred. On the trained networks tried here, such ranges came
closer to fp32 than percentiles, which cut rare large values off, and as close as entropy.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from cnnserve.images.preprocessing import Preprocessor
from cnnserve.process.cpu import cpu_budget
from cnnserve.runtime.session import Session, SessionOptions
from cnnserve_export.images import ImageSet

# By the name of a tensor: its smallest and its largest value, each of shape (1,).
Ranges = dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]


def ranges(
    model: Path,
    operators: Sequence[str],
    images: ImageSet,
    preprocessor: Preprocessor,
    tell: Callable[[int, int], None],
) -> Ranges:
    """Returns the range, over all images, of every float tensor that a node of the types `operators` takes or returns.

    `model` needs inferred shapes; a second file is written beside it. `tell` gets the number of images done and of all
    images. Raises `ExportError` if an image cannot be read.
    """
    observed, tensors = _observed(onnx.load(model), operators)
    path = model.with_suffix(".observed.onnx")
    onnx.save(observed, path)
    session = Session(path, SessionOptions(threads=cpu_budget()))
    lows = np.full(len(tensors), np.inf, np.float32)
    highs = np.full(len(tensors), -np.inf, np.float32)
    done = 0
    for batch in images.batches(preprocessor):
        # The first output is the network's own; a minimum and a maximum of each tensor follow.
        extremes = np.array(session.run(batch.rows)[1:], np.float32)
        np.minimum(lows, extremes[0::2], out=lows)
        np.maximum(highs, extremes[1::2], out=highs)
        done += len(batch.rows)
        tell(done, len(images))
    return {name: (lows[i : i + 1], highs[i : i + 1]) for i, name in enumerate(tensors)}


def _observed(model: onnx.ModelProto, operators: Sequence[str]) -> tuple[onnx.ModelProto, list[str]]:
    """Returns `model` with a minimum and a maximum of each tensor as further outputs, and the tensors' names."""
    graph = model.graph
    floats = {
        value.name
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
    } - {weight.name for weight in graph.initializer}
    # A dictionary keeps the order, so that the file is the same in every run.
    tensors = list(
        dict.fromkeys(
            name for node in graph.node if node.op_type in operators for name in (*node.input, *node.output)
            if name in floats
        )
    )  # fmt: skip
    for name in tensors:
        for operator in ("ReduceMin", "ReduceMax"):
            output = f"{name}/{operator}"
            graph.node.append(helper.make_node(operator, [name], [output], keepdims=0))
            graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, []))
    return model, tensors
