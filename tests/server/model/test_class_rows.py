"""Models without a manifest whose outputs are no rows of logits or probabilities: what is decided, and what is said."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cnnserve.batching.row_check import RowKind
from cnnserve.datatypes import TensorSpec
from cnnserve.errors import ModelLoadFailed
from cnnserve.model.class_rows import ClassRows, decide
from cnnserve.model.loader import OpenVersion
from cnnserve.repository import folders
from cnnserve.repository.onnx_ending import Ending
from cnnserve_client import Client, UnsupportedError
from support import open_version, png, serving

SIZE = 8
IMAGE = {"color": "RGB", "resize": {"mode": "exact", "size": [SIZE, SIZE]}, "mean": [0] * 3, "std": [1] * 3}
PICTURES = [png(np.full((SIZE, SIZE, 3), colour, np.uint8)) for colour in ((250, 3, 90), (0, 200, 10))]
VALUE = helper.make_tensor_value_info
SCORES = VALUE("scores", TensorProto.FLOAT, ["N", 5])
LABEL = VALUE("label", TensorProto.INT64, ["N"])
ML = [helper.make_opsetid("ai.onnx.ml", 2)]


def network(
    nodes: Sequence[onnx.NodeProto],
    outputs: Sequence[onnx.ValueInfoProto],
    *,
    classes: int = 5,
    size: int | str = SIZE,
) -> onnx.ModelProto:
    """The mean of each channel, then `classes` logits, then `nodes`."""
    weights = np.random.default_rng(0).normal(size=(3, classes)).astype(np.float32) * 3
    first = [
        helper.make_node("GlobalAveragePool", ["image"], ["means"]),
        helper.make_node("Flatten", ["means"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
    ]
    image = VALUE("image", TensorProto.FLOAT, ["N", 3, size, size])
    graph = helper.make_graph(
        [*first, *nodes], "g", [image], list(outputs), [numpy_helper.from_array(weights, "weights")]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13), *ML], ir_version=8)


SOFTMAX = helper.make_node("Softmax", ["logits"], ["scores"], axis=1)
SIGMOID = helper.make_node("Sigmoid", ["logits"], ["scores"])
ARGMAX = helper.make_node("ArgMax", ["logits"], ["label"], axis=1, keepdims=0)
ZIPMAP = helper.make_node("ZipMap", ["scores"], ["loss"], domain="ai.onnx.ml", classlabels_int64s=[*range(5)])
ZIPPED = helper.make_value_info(
    "loss", helper.make_sequence_type_proto(helper.make_map_type_proto(TensorProto.INT64, SCORES.type))
)
NAMES = helper.make_node(
    "LabelEncoder", ["label"], ["name"], domain="ai.onnx.ml", keys_int64s=[*range(5)], values_strings=list("abcde")
)
NAMED = VALUE("name", TensorProto.STRING, ["N"])
LISTED = 'output { name: "scores" data_type: TYPE_FP32 dims: [5] }'
MODELS = {
    "sigmoid": network([SIGMOID], [VALUE("scores", TensorProto.FLOAT, ["N", 1])], classes=1),
    "sigmoids": network([SIGMOID], [SCORES]),
    "label_first": network([SOFTMAX, ARGMAX], [LABEL, SCORES]),
    "label_only": network([ARGMAX], [LABEL]),
    "logit": network([], [VALUE("logits", TensorProto.FLOAT, ["N", 1])], classes=1),
}


def write(root: Path, name: str, model: onnx.ModelProto, config: str = "") -> None:
    folder = root / name / "1"
    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx")
    text = json.dumps({**IMAGE, "normalize": "host"}).replace('"', '\\"')
    image = f'parameters {{ key: "cnnserve.image" value {{ string_value: "{text}" }} }}'
    (root / name / "config.pbtxt").write_text(f"max_batch_size: 8\n{config}\n{image}\n")


def opened(root: Path, name: str) -> OpenVersion:
    return open_version(folders.find(root, name), 1)


def logits(model: onnx.ModelProto) -> np.ndarray:
    weights = numpy_helper.to_array(model.graph.initializer[0])
    return np.array([(250, 3, 90), (0, 200, 10)]) / 255 @ weights


def test_what_clients_get(tmp_path: Path) -> None:
    for name, model in MODELS.items():
        write(tmp_path / "models", name, model)
    with serving(tmp_path / "log", tmp_path / "models") as server, Client(server.address) as client:
        found = {name: rows(client, name) for name in ("sigmoid", "sigmoids", "label_first")}
        p = 1 / (1 + np.exp(-logits(MODELS["sigmoid"])))
        np.testing.assert_allclose(found["sigmoid"], np.concatenate([1 - p, p], axis=1), atol=1e-5)
        np.testing.assert_allclose(found["sigmoids"], 1 / (1 + np.exp(-logits(MODELS["sigmoids"]))), atol=1e-5)
        exponents = np.exp(logits(MODELS["label_first"]))
        np.testing.assert_allclose(found["label_first"], exponents / exponents.sum(axis=1, keepdims=True), atol=1e-5)
        for name, said in (("label_only", "output 'label' is INT64"), ("logit", "does not end in a sigmoid")):
            with pytest.raises(UnsupportedError, match=said):
                client.classify(PICTURES[0], model=name)


def rows(client: Client, model: str) -> np.ndarray:
    results = client.classify(PICTURES, model=model, top_k=5).results
    return np.array([[item.probability for item in sorted(r.classes, key=lambda c: c.index)] for r in results])


def test_independent_classes_are_those_above_a_half(tmp_path: Path) -> None:
    """Without a number of classes in the request; the most probable class is always among them."""
    write(tmp_path / "models", "sigmoids", MODELS["sigmoids"])
    with serving(tmp_path / "log", tmp_path / "models") as server, Client(server.address) as client:
        results = client.classify(PICTURES, model="sigmoids").results
    for result, probabilities in zip(results, 1 / (1 + np.exp(-logits(MODELS["sigmoids"]))), strict=True):
        above = {int(index) for index in np.flatnonzero(probabilities >= 0.5)} or {int(probabilities.argmax())}
        assert {item.index for item in result.classes} == above
    assert len({len(result.classes) for result in results}) > 1


@pytest.mark.parametrize(
    ("nodes", "outputs"),
    [([SOFTMAX, ARGMAX, NAMES], [SCORES, NAMED]), ([SOFTMAX, ZIPMAP], [SCORES, ZIPPED])],
    ids=["string labels", "ZipMap"],
)
def test_labels_beside_the_scores_are_left_out_if_the_config_lists_the_scores(
    tmp_path: Path, nodes: list[onnx.NodeProto], outputs: list[onnx.ValueInfoProto]
) -> None:
    write(tmp_path, "listed", network(nodes, outputs), LISTED)
    info = opened(tmp_path, "listed").info
    assert [output.name for output in info.settings.outputs] == ["scores"]
    assert (info.class_count, info.rows.kind) == (5, RowKind.SOFTMAX)
    write(tmp_path, "unlisted", network(nodes, outputs))
    with pytest.raises(ModelLoadFailed, match=r'cannot be served; list only the other outputs .*\("scores"\)'):
        opened(tmp_path, "unlisted")


def test_a_model_with_nothing_to_serve_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "m", network([ARGMAX, NAMES], [NAMED]))
    with pytest.raises(ModelLoadFailed, match=r"output 'name' has type tensor.string., .*export the model with an out"):
        opened(tmp_path, "m")


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (network([SOFTMAX], [SCORES], size="s"), RowKind.SOFTMAX),
        (network([SIGMOID], [SCORES], size="s"), RowKind.SIGMOID),
    ],
)
def test_a_free_size_leaves_the_graph_to_look_at(tmp_path: Path, model: onnx.ModelProto, kind: RowKind) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    onnx.save(model, tmp_path / "m" / "1" / "model.onnx")
    info = opened(tmp_path, "m").info
    assert (info.class_count, info.rows.kind) == (5, kind)
    assert "as far as the graph shows" in str(info.probe)


def test_the_decision_is_shown(tmp_path: Path) -> None:
    said = {
        "sigmoid": ("one probability each, by a sigmoid, so Classify makes two classes", "sigmoid, in the model"),
        "sigmoids": ("independent probabilities, by sigmoids", "sigmoid, in the model"),
        "label_only": ("no scores of classes, so Classify is refused: output 'label' is INT64", "unknown"),
        "label_first": ("its output rows are probabilities", "softmax, in the model"),
    }
    for name, (text, activation) in said.items():
        write(tmp_path, name, MODELS[name])
        info = opened(tmp_path, name).info
        assert text in str(info.probe)
        assert info.config.parameters["cnnserve.activation"].string_value == activation


SHARES = np.array([[0.25, 0.5], [0.9, 0.8]], np.float32)


@pytest.mark.parametrize(
    ("shape", "datatype", "ending", "runs", "decided"),
    [
        ((-1, 2), "FP32", "unknown", [SHARES * 9], ClassRows(RowKind.ANY)),
        ((-1, 2), "FP32", "log-softmax", [-SHARES], ClassRows(RowKind.ANY)),
        ((-1, 2, 1, 1), "FP16", "sigmoid", [SHARES[:, :, None, None]], ClassRows(RowKind.SIGMOID)),
        ((-1, 2), "FP32", "unknown", [SHARES], "all values of output 'y' are from 0 to 1, but rows do not sum to 1"),
        ((-1, 2, 2), "FP32", "sigmoid", [np.ones((2, 2, 2), np.float32)], r"has rows of shape \[2, 2\], expected one"),
        ((-1,), "FP32", "sigmoid", [SHARES[:, 0]], ClassRows(RowKind.SIGMOID, single=True)),
        (
            (-1, 1),
            "FP32",
            "softmax",
            [SHARES[:, :1]],
            "has one value for an image, and the graph does not",
        ),
        ((-1, 2), "INT64", "unknown", [SHARES], "output 'y' is INT64"),
        ((-1, 2), "FP32", "unknown", [], ClassRows(RowKind.ANY)),
    ],
)
def test_what_is_decided(
    shape: tuple[int, ...], datatype: str, ending: Ending, runs: list[Any], decided: ClassRows | str
) -> None:
    found = decide(TensorSpec("y", datatype, shape), ending, runs)
    if isinstance(decided, ClassRows):
        assert found == decided
    else:
        assert re.search(decided, found.refusal)
