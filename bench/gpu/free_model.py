"""A model that costs nothing: it takes the images of another model and returns as many classes, the same for all."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from cnnserve.model_config.pbtxt import CONFIG_FILE
from cnnserve.repository.manifest import Manifest


def write_free_model(folder: Path, like: Manifest) -> None:
    """Writes the folder of the model, which has no manifest. Its graph reads one value of each image."""
    shape, rank = like.input.shape, len(like.input.shape)
    constants: dict[str, NDArray[Any]] = {
        "starts": np.zeros(rank, np.int64),
        "ends": np.ones(rank, np.int64),
        "axes": np.arange(1, rank + 1, dtype=np.int64),
        "column": np.array([-1, 1], np.int64),
        "weights": np.zeros((1, like.class_count), np.float32),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Slice", ["image", "starts", "ends", "axes"], ["value"]),
            helper.make_node("Reshape", ["value", "column"], ["rows"]),
            helper.make_node("Cast", ["rows"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("MatMul", ["floats", "weights"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"]),
        ],
        folder.name,
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", *shape])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", like.class_count])],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    (folder / "1").mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / "1" / "model.onnx")
    (folder / CONFIG_FILE).write_text(f"max_batch_size: {like.max_batch_size}\n")
