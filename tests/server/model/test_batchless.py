"""Models without a batch dimension, and inputs that can take no batch: what is said before any run."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cnnserve.errors import ModelLoadFailed
from cnnserve.model import loader
from cnnserve.repository import folders
from cnnserve.repository.version_files import VersionFiles
from cnnserve.wire import open_inference_pb2 as o
from cnnserve_client import Client
from oip import Oip, floats
from support import png, serving

VALUE = helper.make_tensor_value_info
SHAPE = [3, 8, 8]
IMAGE = {"color": "RGB", "resize": {"mode": "exact", "size": [8, 8]}, "mean": [0] * 3, "std": [1] * 3}
WEIGHTS = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)


def network(first: str, last: str, image: onnx.ValueInfoProto, outputs: list[int]) -> bytes:
    """The softmax of the channels' means times weights; `first` and `last` are operators at its ends."""
    nodes = [
        helper.make_node(first, ["image", "axes"] if first == "Unsqueeze" else ["image"], ["images"]),
        helper.make_node("GlobalAveragePool", ["images"], ["means"]),
        helper.make_node("Flatten", ["means"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["rows"], axis=1),
        helper.make_node(last, ["rows", "axes"] if last == "Squeeze" else ["rows"], ["scores"]),
    ]
    constants = [numpy_helper.from_array(WEIGHTS, "weights"), numpy_helper.from_array(np.array([0]), "axes")]
    graph = helper.make_graph(nodes, "g", [image], [VALUE("scores", TensorProto.FLOAT, outputs)], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    data: bytes = model.SerializeToString()
    return data


SINGLE = network("Unsqueeze", "Squeeze", VALUE("image", TensorProto.FLOAT, SHAPE), [5])
SQUEEZED = network("Identity", "Squeeze", VALUE("image", TensorProto.FLOAT, [1, *SHAPE]), [5])
DECLARED = """
max_batch_size: 0
input { name: "image" data_type: TYPE_FP32 dims: [DIMS] }
output { name: "scores" data_type: TYPE_FP32 dims: [5] }
"""


def write(root: Path, name: str, model: bytes, config: str = "", *, images: bool = False) -> None:
    (root / name / "1").mkdir(parents=True)
    (root / name / "1" / "model.onnx").write_bytes(model)
    text = json.dumps({**IMAGE, "normalize": "host"}).replace('"', '\\"')
    image = f'parameters {{ key: "cnnserve.image" value {{ string_value: "{text}" }} }}' if images else ""
    if config or image:
        (root / name / "config.pbtxt").write_text(f"{config}\n{image}\n")


def expected(rows: np.ndarray) -> np.ndarray:
    logits = rows.mean(axis=(2, 3)) @ WEIGHTS
    made: np.ndarray = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return made


@pytest.mark.parametrize(
    ("model", "config", "shape", "returned"),
    [
        (SINGLE, DECLARED.replace("DIMS", "3, 8, 8"), SHAPE, [5]),
        (SINGLE, "", [1, *SHAPE], [1, 5]),
        (SINGLE, "max_batch_size: 1", [1, *SHAPE], [1, 5]),
        (SQUEEZED, DECLARED.replace("DIMS", "1, 3, 8, 8"), [1, *SHAPE], [5]),
        (SQUEEZED, "", [1, *SHAPE], [1, 5]),
    ],
)
def test_tensors(tmp_path: Path, model: bytes, config: str, shape: list[int], returned: list[int]) -> None:
    write(tmp_path / "models", "m", model, config)
    row = np.random.default_rng(1).random((1, *SHAPE), np.float32)
    request = o.ModelInferRequest(model_name="m", raw_input_contents=[row.tobytes()])
    request.inputs.add(name="image", datatype="FP32", shape=shape)
    with serving(tmp_path / "log", tmp_path / "models") as server, Oip(server.address) as oip:
        answer = oip("ModelInfer", request)
        assert list(answer.outputs[0].shape) == returned
        np.testing.assert_allclose(floats(answer).reshape(1, 5), expected(row), atol=1e-5)
        assert "its output rows are probabilities" in server.log


@pytest.mark.parametrize("config", ["", DECLARED.replace("DIMS", "3, 8, 8")])
def test_images(tmp_path: Path, config: str) -> None:
    write(tmp_path / "models", "m", SINGLE, config, images=True)
    pictures = [png(np.full((8, 8, 3), colour, np.uint8)) for colour in ((250, 3, 90), (0, 200, 10))]
    rows = np.array([(250, 3, 90), (0, 200, 10)])[:, :, None, None] / 255 * np.ones((1, 1, 8, 8))
    with serving(tmp_path / "log", tmp_path / "models") as server, Client(server.address) as client:
        for picture, probabilities in zip(pictures, expected(rows), strict=True):
            [result] = client.classify(picture, model="m", top_k=5).results
            found = [item.probability for item in sorted(result.classes, key=lambda item: item.index)]
            np.testing.assert_allclose(found, probabilities, atol=1e-5)


def test_a_batch_is_refused_with_what_to_set(tmp_path: Path) -> None:
    write(tmp_path, "m", SINGLE, "max_batch_size: 4")
    assert "the ONNX file has no batch dimension; set max_batch_size to 0" in refusal(tmp_path, 1)


def second_input() -> bytes:
    model = onnx.load_from_string(SINGLE)
    model.graph.input.append(VALUE("keep_prob", TensorProto.FLOAT, []))
    model.graph.node.append(helper.make_node("Identity", ["keep_prob"], ["unused"]))
    data: bytes = model.SerializeToString()
    return data


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("model", "said"),
    [
        (second_input(), r"the model has 2 inputs (image, keep_prob), expected one: a batch of images"),
        (
            network("Identity", "Identity", VALUE("image", TensorProto.FLOAT, None), [5]),
            "input 'image' is a scalar or has no shape",
        ),
        (
            network("Identity", "Identity", VALUE("image", TensorProto.FLOAT, [0, *SHAPE]), [0, 5]),
            "input 'image' has the shape [0, 3, 8, 8], which holds no value; export the model with a free batch",
        ),
    ],
    ids=["two inputs", "no shape", "batch 0"],
)
def test_what_takes_no_batch_is_refused_before_a_run(tmp_path: Path, model: bytes, said: str, threads: int) -> None:
    write(tmp_path, "m", model)
    assert said in refusal(tmp_path, threads)


def refusal(root: Path, threads: int) -> str:
    with pytest.raises(ModelLoadFailed) as caught, VersionFiles(folders.find(root, "m"), 1) as files:
        loader.open_version(files, threads, engine_cache=root)
    return str(caught.value)
