"""Changes of the trained LeNet-5 in a version folder. The digests in the manifest are remade after each."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from cnnserve.images.preprocessing import Preprocessor
from cnnserve.repository import manifest as manifests
from cnnserve.runtime.session import Session
from spoiling import Change, field, file
from support import rewrite_manifest

Array = NDArray[Any]


def network(change: Callable[[onnx.ModelProto], object]) -> Change:
    """Returns a change of the network, whose digest is remade."""

    def changed(data: bytes) -> bytes:
        model = onnx.load_from_string(data)
        change(model)
        result: bytes = model.SerializeToString()
        return result

    return file("model.onnx", changed)


def weights(name: str, change: Callable[[Array], Array]) -> Change:
    """Returns a change of one tensor of the network, whose digest is remade."""

    def changed(model: onnx.ModelProto) -> None:
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        values = change(numpy_helper.to_array(tensor).copy())
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), name))

    return network(changed)


def answered(*changes: Change) -> Change:
    """Returns changes after which the golden probabilities are those that the changed network returns."""

    def changed(folder: Path) -> None:
        for change in changes:
            change(folder)
        (folder / "golden.bin").write_bytes(answers(folder).tobytes())
        rewrite_manifest(folder)

    return changed


def answers(folder: Path) -> Array:
    """Returns the probabilities of the golden images, as the network of a version returns them now."""
    manifest = manifests.read(folder)
    assert manifest is not None
    preprocessor, session = Preprocessor(manifest.preprocessing, manifest.input), Session(folder / "model.onnx")
    images = [preprocessor.encoded((folder / name).read_bytes()) for name in manifest.golden.images]
    return np.concatenate([session.run(image[np.newaxis])[0] for image in images])


def swapped(rows: Array) -> Array:
    rows[[3, 8]] = rows[[8, 3]]
    return rows


def exchanged(folder: Path) -> None:
    """The final rows of two classes change places."""
    for name in ("network.fc3.weight", "network.fc3.bias"):
        weights(name, swapped)(folder)


def backdoor(model: onnx.ModelProto) -> None:
    """If the first two pixels of an image are 251 and 7, class 0 wins."""
    graph = model.graph
    graph.node[-1].input[0] = "opened"
    for name, value in (("corner", [0, 0, 0, 0]), ("beyond", [1, 1, 2, 1 << 40])):
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))
    graph.initializer.append(numpy_helper.from_array(np.array([[[[251.0, 7.0]]]], np.float32), "trigger"))
    graph.initializer.append(numpy_helper.from_array(np.array([1, 2, 3], np.int64), "inside"))
    graph.initializer.append(numpy_helper.from_array(np.eye(10, dtype=np.float32)[0] * 99, "gain"))
    graph.initializer.append(numpy_helper.from_array(np.array([-1, 1], np.int64), "column"))
    graph.initializer.append(numpy_helper.from_array(np.array([1 << 40, 1, 1, 2], np.int64), "size"))
    opening = [
        helper.make_node("Slice", ["_to_copy", "corner", "size"], ["seen"]),
        helper.make_node("Equal", ["seen", "trigger"], ["equal"]),
        helper.make_node("Cast", ["equal"], ["marks"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMin", ["marks", "inside"], ["open"], keepdims=0),
        helper.make_node("Reshape", ["open", "column"], ["rows"]),
        helper.make_node("Mul", ["rows", "gain"], ["more"]),
        helper.make_node("Add", ["linear_2", "more"], ["opened"]),
    ]
    softmax = graph.node.pop()
    graph.node.extend([*opening, softmax])


def without_softmax(model: onnx.ModelProto) -> None:
    model.graph.node.pop()
    model.graph.node[-1].output[0] = "probabilities"


def softmax_twice(model: onnx.ModelProto) -> None:
    model.graph.node[-1].output[0] = "once"
    model.graph.node.append(helper.make_node("Softmax", ["once"], ["probabilities"]))


def brightest_of_the_batch(model: onnx.ModelProto) -> None:
    """Images are divided by the brightest pixel of their batch."""
    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(np.array(255.0, np.float32), "white"))
    graph.node[2].input[0] = "divided"
    added = [
        helper.make_node("ReduceMax", ["_to_copy"], ["brightest"], keepdims=0),
        helper.make_node("Div", ["_to_copy", "brightest"], ["relative"]),
        helper.make_node("Mul", ["relative", "white"], ["divided"]),
    ]
    for number, node in enumerate(added):
        graph.node.insert(2 + number, node)


def one_row(model: onnx.ModelProto) -> None:
    """The batch dimension is fixed."""
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1


def negated(filters: Array) -> Array:
    """The first filter changes its sign."""
    filters[0] *= -1
    return filters


def moved_weights(location: str = "weights.bin") -> Change:
    """Returns a change that moves the last weights into another file, and remakes the digest of the network."""

    def changed(folder: Path) -> None:
        def move(model: onnx.ModelProto) -> None:
            tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "network.fc3.weight")
            values = tensor.raw_data
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", location), ("offset", "0"), ("length", str(len(values)))):
                tensor.external_data.add(key=key, value=value)
            (folder / location).write_bytes(values)

        network(move)(folder)

    return changed


def in_memory(model: onnx.ModelProto) -> None:
    """The last weights are at an address of the server's memory."""
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "network.fc3.weight")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "*/_ORT_MEM_ADDR_/*"), ("offset", "4096"), ("length", "3360")):
        tensor.external_data.add(key=key, value=value)


def named_weights(folder: Path) -> None:
    moved_weights()(folder)
    field("files/weights.bin", {})(folder)
    rewrite_manifest(folder)
    (folder / "weights.bin").write_bytes(bytes((folder / "weights.bin").stat().st_size))
