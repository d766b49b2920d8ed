"""Variants of the tiny network whose runs or rows go wrong if the first pixel of an image has a certain value."""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from support import SIDE, png, tiny_onnx

# First pixels of images for `bad_rows_onnx`.
TRIPLED, NOT_FINITE = 7, 9


def image(first_pixel: int) -> bytes:
    """Returns a PNG that the tiny network takes, with this first pixel."""
    return png(pixels(first_pixel)[0, ..., 0])


def pixels(*first_pixels: int) -> NDArray[np.uint8]:
    """Returns a tensor of images with these first pixels. Their left half is bright."""
    rows = np.zeros((len(first_pixels), SIDE, SIDE, 1), np.uint8)
    rows[:, :, : SIDE // 2] = 255
    rows[:, 0, 0, 0] = first_pixels
    return rows


def bad_rows_onnx(*, datatype: int = TensorProto.UINT8) -> bytes:
    """Returns a network whose row sums to 3 for the first pixel `TRIPLED`, and is infinite for `NOT_FINITE`."""
    model = onnx.load_from_string(tiny_onnx(datatype=datatype))
    graph = model.graph
    graph.node[-1].output[0] = "softmax"
    graph.node.extend(
        [
            helper.make_node("Gather", ["rows", "first"], ["pixels"], axis=1),
            *_equal("tripled"),
            *_equal("infinite"),
            helper.make_node("Mul", ["is_tripled", "two"], ["more"]),
            helper.make_node("Add", ["more", "one"], ["factor"]),
            helper.make_node("Sub", ["one", "is_infinite"], ["divisor"]),
            helper.make_node("Mul", ["softmax", "factor"], ["scaled"]),
            helper.make_node("Div", ["scaled", "divisor"], ["probabilities"]),
        ]
    )
    graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "first"))
    constants = {"tripled": TRIPLED, "infinite": NOT_FINITE, "one": 1, "two": 2}
    graph.initializer.extend(numpy_helper.from_array(np.array(v, np.float32), name) for name, v in constants.items())
    return _checked(model)


def looping_onnx(trigger: int) -> bytes:
    """Returns a network with a loop that never ends if a first pixel of the batch has the value `trigger`."""
    model = onnx.load_from_string(tiny_onnx())
    graph = model.graph
    value, nodes = helper.make_tensor_value_info, list(graph.node)
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["again"], ["still"]),
            helper.make_node("Identity", ["rows_in"], ["rows_out"]),
        ],
        "body",
        [
            value("turn", TensorProto.INT64, []),
            value("again", TensorProto.BOOL, []),
            value("rows_in", TensorProto.FLOAT, None),
        ],
        [value("still", TensorProto.BOOL, []), value("rows_out", TensorProto.FLOAT, None)],
    )
    loop = [
        helper.make_node("Gather", ["rows", "first"], ["pixels"], axis=1),
        *_equal("trigger"),
        helper.make_node("ReduceMax", ["is_trigger"], ["hit"], keepdims=0),
        helper.make_node("Cast", ["hit"], ["endless"], to=TensorProto.BOOL),
        helper.make_node("Loop", ["", "endless", "rows"], ["looped"], body=body),
    ]
    nodes[2].input[0] = "looped"
    del graph.node[:]
    graph.node.extend([*nodes[:2], *loop, *nodes[2:]])
    graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "first"))
    graph.initializer.append(numpy_helper.from_array(np.array(trigger, np.float32), "trigger"))
    return _checked(model)


def _equal(name: str) -> list[onnx.NodeProto]:
    """Returns nodes that make `is_NAME`: 1 where the pixel has the value `name`, otherwise 0."""
    return [
        helper.make_node("Equal", ["pixels", name], [f"hits_{name}"]),
        helper.make_node("Cast", [f"hits_{name}"], [f"is_{name}"], to=TensorProto.FLOAT),
    ]


def _checked(model: onnx.ModelProto) -> bytes:
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data
